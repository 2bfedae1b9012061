"""What the router costs with prefill and decode split: CPU per request and token, instructions.

Router on one core, Rust mock workers and the load generator on another. Phases:
- chat: 64 connections, closed loop, short chat, 16 tokens, not streamed, steps take no time;
- paced: 200 streams of 200 tokens, a step every 20 ms, as an engine would;
- the same two through nginx, a byte proxy in front of a mock engine, in the same run.
Under callgrind: user instructions of a streamed request of 16 tokens, and of one more token.
Best of ROUNDS by CPU; `foreign` (cores used by others) stands beside.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import peers
from bench.common import ANY_PORTS, REPO, Meter, finish, free_port, skip, started, wait_ready

ROUNDS = 3
CHAT = {"c": 64.0, "d": 4.0, "w": 1.0}
PACED = {"c": 200.0, "d": 6.0, "w": 2.0}
STEP_MS = 20
CHAT_TOKENS, PACED_TOKENS = 16, 200
# Enough requests for the difference between two runs to drown what goes on beside them.
CALLGRIND_REQUESTS = (100, 300)
CALLGRIND_TOKENS = (16, 80)
MUST = {"request_x_nginx": 2.0, "token_x_nginx": 0.75, "ir_request": 120_000, "ir_token": 1_500}


def target(name: str) -> Path:
    """A release binary."""
    return Path(os.environ.get("CARGO_TARGET_DIR") or REPO / "target") / "release" / name


@contextlib.contextmanager
def dopd(folder: Path, *workers: str, wrap: tuple[str, ...] = ()) -> Iterator[tuple[int, int]]:
    """Router with one prefill and one decode mock worker; yields (HTTP port, router's pid)."""
    token, ready, log = folder / "token", folder / "ready.json", folder / "router.txt"
    ready.unlink(missing_ok=True)
    token.write_text("bench-token-of-enough-length-0123456789\n")
    token.chmod(0o600)
    words: list[str | Path] = [
        "router",
        "--mock",
        *ANY_PORTS,
        "--join-token-file",
        token,
        "--ready-file",
        ready,
    ]
    words += ["--log-level", "warn"]
    command = peers.pinned(peers.ROUTER_CPU, [*wrap, target("dopd-router"), *words])
    with started(command, log) as router:
        found = wait_ready(ready, router, log)
        mock = [target("dopd-mock"), "--workers", "prefill=1,decode=1", "--join", found["workers"]]
        mock += [
            "--join-token-file",
            token,
            "--max-num-seqs",
            "512",
            "--log-level",
            "warn",
            *workers,
        ]
        with started(peers.pinned(peers.LOAD_CPU, mock), folder / "mock.txt"):
            port = int(found["http"].rsplit(":", 1)[1])
            peers.load(port, peers.body(folder, "mock", 2, is_stream=False), c=1, n=2, w=0, d=20)
            yield port, router.pid


@contextlib.contextmanager
def nginx(folder: Path, step_us: int) -> Iterator[tuple[int, int]]:
    """nginx before the mock engine; yields (port, the worker process's pid)."""
    port, back = free_port(), free_port()
    command = peers.nginx_command(folder, port, back)
    assert command is not None
    engine = peers.pinned(peers.LOAD_CPU, [peers.BUILD / "worker", str(back), f"itl_us={step_us}"])
    log = folder / "nginx.txt"
    with started(engine, folder / "engine.txt"), started(command, log) as master:
        content = peers.body(folder, "mock-model", 2, is_stream=False)
        peers.load(port, content, c=1, n=2, w=0, d=20)
        children = Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text().split()
        yield port, int(children[0])


def phase(port: int, pid: int, content: Path, options: dict[str, float]) -> dict[str, float]:
    """One phase: CPU of the router for what was sent and received."""
    meter = Meter({"router": pid})
    with meter.running():
        report = peers.load(port, content, **options)
    if not report["s2xx"] or report["s4xx"] or report["s5xx"] or report["err"]:
        raise RuntimeError(f"a phase failed: {report}")
    used_us = meter.used_ns["router"] / 1e3
    # The generator counts tokens after its warm-up only; the router worked all the time.
    share = options["d"] / meter.seconds
    return {
        "requests_per_s": report["rps"],
        "tokens_per_s": report["tps"],
        "us_per_request": used_us / report["sent"],
        "us_per_token": used_us * share / report["tok"] if report["tok"] else 0.0,
        "router_cores": used_us / 1e6 / meter.seconds,
        "foreign_and_load": meter.foreign,
    }


def compare(folder: Path) -> dict[str, Any]:
    """All phases, interleaved; the best round of each."""
    chat = {name: peers.body(folder, name, CHAT_TOKENS, is_stream=False) for name in MODELS}
    paced = {name: peers.body(folder, name, PACED_TOKENS, is_stream=True) for name in MODELS}
    rounds: dict[str, list[dict[str, float]]] = {}
    for _ in range(ROUNDS):
        with dopd(folder) as (port, pid):
            rounds.setdefault("chat", []).append(phase(port, pid, chat["mock"], CHAT))
        with dopd(folder, "--step-ms", str(STEP_MS)) as (port, pid):
            rounds.setdefault("paced", []).append(phase(port, pid, paced["mock"], PACED))
        if peers.nginx_command(folder, 1, 1) is None:
            continue
        with nginx(folder, 0) as (port, pid):
            found = phase(port, pid, chat["mock-model"], CHAT)
            rounds.setdefault("chat_nginx", []).append(found)
        with nginx(folder, STEP_MS * 1000) as (port, pid):
            found = phase(port, pid, paced["mock-model"], PACED)
            rounds.setdefault("paced_nginx", []).append(found)
    unit = {"chat": "us_per_request", "paced": "us_per_token"}
    return {
        name: min(found, key=lambda one: one[unit[name.removesuffix("_nginx")]])
        for name, found in rounds.items()
    }


MODELS = ("mock", "mock-model")


def instructions(folder: Path, requests: int, tokens: int) -> int:
    """User instructions of the router's whole life with so many streamed requests."""
    out = folder / "callgrind.out"
    wrap = ("valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--quiet")
    with dopd(folder, wrap=wrap) as (port, _):
        content = peers.body(folder, "mock", tokens, is_stream=True)
        report = peers.load(port, content, c=16, n=requests, w=0, d=300)
        if report["err"]:
            raise RuntimeError(f"{report['err']} requests failed: {report['firsterr']}")
    found = re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def callgrind(folder: Path) -> dict[str, float] | None:
    """Differences between runs; None without valgrind."""
    if shutil.which("valgrind") is None:
        return None
    few, many = CALLGRIND_REQUESTS
    short, long = CALLGRIND_TOKENS
    base = instructions(folder, few, short)
    more = instructions(folder, many, short)
    longer = instructions(folder, few, long)
    return {
        "ir_request": (more - base) / (many - few),
        "ir_token": (longer - base) / few / (long - short),
    }


def main(argv: list[str]) -> int:
    """Everything that this machine allows."""
    del argv
    if peers.tools() is None:
        return skip("router_alone", "DOPD_PEERBENCH names no folder with load.c, or there is no cc")
    if not target("dopd-mock").is_file():
        return skip("router_alone", "release binaries are missing; make build")
    if shutil.which("taskset") is None or (os.cpu_count() or 1) < 2:
        return skip("router_alone", "it needs taskset and two cores")
    with tempfile.TemporaryDirectory(prefix="dopd-bench-") as name:
        result: dict[str, Any] = {"phases": compare(Path(name)), "must": MUST}
        result["callgrind"] = callgrind(Path(name))
    phases = result["phases"]
    if "chat_nginx" in phases:
        ours, other = phases["chat"], phases["chat_nginx"]
        result["request_x_nginx"] = ours["us_per_request"] / other["us_per_request"]
        ours, other = phases["paced"], phases["paced_nginx"]
        result["token_x_nginx"] = ours["us_per_token"] / other["us_per_token"]
    return finish("router_alone", result)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
