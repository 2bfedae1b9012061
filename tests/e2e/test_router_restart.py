"""The router is killed and started again: workers of other processes are adopted."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import mock_model
from tests.support.binaries import binary
from tests.support.processes import Process, ended, wait_for
from tests.support.server import Server, serve

LONG = {"model": "mock", "prompt": [9] * 100, "max_tokens": 2_000, "ignore_eos": True}


@contextlib.contextmanager
def worker(kind: str, role: str, server: Server, folder: Path, token: Path) -> Iterator[Process]:
    words = ("--mock", "--mock-timings", "h100-8b", "--role", role, "--join", server.workers)
    words = (*words, "--name", role, "--join-token-file", str(token))
    program = binary("dopd-mock") if kind == "rust" else None
    command = words if program else ("worker", *words)
    with ended(Process(folder / role, *command, program=program)) as process:
        yield process


@pytest.mark.parametrize("kind", ["python", "rust"])
def test_workers_are_adopted_and_their_pages_are_back(kind: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o600)
    join = ("--join-token-file", token)
    with contextlib.ExitStack() as stack:
        with serve("--mock", *join, command="router") as old:
            for role in ("prefill", "decode"):
                stack.enter_context(worker(kind, role, old, tmp_path, token))
            wait_for(lambda: old.get("/ready").status == 200, "tokens flow")
            wait_for(lambda: len(old.status()["workers"]) == 2, "both are attached")
            events = old.events("/v1/completions", LONG)
            next(events)
            os.kill(old.pid, signal.SIGKILL)
            old.process.popen.wait(30)
            with contextlib.suppress(OSError):
                list(events)
        ports = {"--port": old.http, "--grpc-port": old.grpc, "--worker-port": old.workers}
        again = [word for flag, at in ports.items() for word in (flag, at.split(":")[1])]
        started = time.monotonic()
        with restarted(*again, "--metrics-port", "0", "--mock", *join) as new:
            up = time.monotonic()
            wait_for(lambda: len(new.status()["workers"]) == 2, "both are adopted")
            adopted = time.monotonic()
            print(f"serving after {up - started:.2f} s, adopted {adopted - up:.2f} s later")
            # 2 s are promised, the rest is for a busy machine.
            assert adopted - up < 6
            fleet = new.wait_idle()
            assert all(
                w["pages"]["free"] + w["pages"]["cached"] == w["pages"]["total"]
                for w in fleet["workers"]
            )
            found = new.complete([1, 2], max_tokens=8, ignore_eos=True)
            expected = mock_model.answer([1, 2], 8, ignore_eos=True)
            assert found["choices"][0]["text"] == mock_model.text(expected)


@contextlib.contextmanager
def restarted(*words: str | Path) -> Iterator[Server]:
    """The router again; what is given here wins over the free ports that `serve` asks for."""
    with serve(*words, command="router", ports=()) as server:
        yield server
