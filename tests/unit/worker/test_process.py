"""`python -m dopd.worker` as a process: exit codes, signals, standard input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dopd._gen.dopd.worker.v1 import worker_pb2 as pb
from dopd.worker import lifecycle
from dopd.worker.__main__ import main
from tests.support.scripted_router import TOKEN, ScriptedRouter, open_compute

WAIT_S = 30


@contextmanager
def process(join: str, *arguments: str, token: str = TOKEN) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "dopd.worker", "--mock", "--role", "mixed", "--name", "w"]
    started = subprocess.Popen(
        [*command, "--join", join, *arguments],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DOPD_JOIN_TOKEN": token},
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate(timeout=WAIT_S)


def test_it_attaches_computes_and_drains_on_sigterm() -> None:
    with ScriptedRouter() as router, process(router.address) as worker:
        w = router.worker("w")
        assert w.hello.pid == worker.pid
        # Ctrl-C is the router's to act on.
        worker.send_signal(signal.SIGINT)
        w.send(open_compute(1, [1, 2, 3], 5))
        router.wait_for(lambda: 1 in w.closed, "closed")
        assert w.closed[1] == "length"
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(WAIT_S) == 0
        router.wait_for(lambda: w.is_gone, "the end of the stream")


def test_sigterm_lets_residents_finish_and_a_second_one_does_not() -> None:
    with ScriptedRouter() as router, process(router.address) as worker:
        w = router.worker("w")
        w.send(open_compute(1, [1, 2, 3], 100_000, ignore_eos=True))
        router.wait_for(lambda: 1 in w.tokens, "a token")
        worker.send_signal(signal.SIGTERM)
        router.wait_for(lambda: w.last.draining, "draining")
        assert worker.poll() is None
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(WAIT_S) == 0


def test_it_ends_with_its_stdin() -> None:
    with ScriptedRouter() as router, process(router.address, "--exit-on-stdin-eof") as worker:
        router.worker("w")
        assert worker.stdin is not None
        worker.stdin.close()
        assert worker.wait(WAIT_S) == 0
        worker.stdin = None


def test_a_refusal_for_good_is_exit_2_with_the_message() -> None:
    refusal = pb.Refusal(message="page size 16, here 32")
    with ScriptedRouter(refusal=refusal) as router, process(router.address) as worker:
        _, errors = worker.communicate(timeout=WAIT_S)
        assert worker.returncode == 2
        assert errors.splitlines()[-1] == (
            "error: the router refuses this worker: page size 16, here 32"
        )


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--max-num-seqs", "0"], "error: max_num_seqs is 0, at least 1 is needed"),
        (["--page-sizes", "16"], "error: unrecognized arguments: --page-sizes"),
    ],
)
def test_wrong_usage_is_exit_2(arguments: list[str], error: str) -> None:
    with process("127.0.0.1:1", *arguments) as worker:
        _, errors = worker.communicate(timeout=WAIT_S)
        assert worker.returncode == 2
        assert error in errors


def test_a_real_model_without_torch_is_exit_2_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOPD_JOIN_TOKEN", TOKEN)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "dopd.engine.torch", raising=False)
    monkeypatch.delattr("dopd.engine.torch", raising=False)
    monkeypatch.setattr(lifecycle, "ignore_interrupts", lambda: None)
    assert main(["--model", "x", "--role", "mixed", "--join", "127.0.0.1:1"]) == 2
    assert "needs the package torch: pip install 'dopd[worker]'" in capsys.readouterr().err


def test_importing_the_worker_is_cheap() -> None:
    """Nothing that a mock worker does not need: no torch, no numpy, no asyncio server, no TOML."""
    code = "import sys, dopd.worker.__main__, dopd.engine.mock; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "numpy", "msgspec", "tomllib", "rich", "dopd._router"}
