"""`python -m dopd.worker` as a process: exit codes, signals, standard input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest

from dopd._gen.dopd.worker.v1 import worker_pb2 as pb
from dopd.worker import lifecycle
from dopd.worker.__main__ import main
from dopd.worker.desk import Desk
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


def test_sigterm_waits_no_longer_than_the_drain_timeout() -> None:
    with ScriptedRouter() as router, process(router.address, "--drain-timeout", "1") as worker:
        w = router.worker("w")
        w.send(open_compute(1, [1, 2, 3], 100_000, ignore_eos=True))
        router.wait_for(lambda: 1 in w.tokens, "a token")
        worker.send_signal(signal.SIGTERM)
        router.wait_for(lambda: w.last.draining, "draining")
        # The stream ends as a worker's does that leaves: the router replays what it had.
        router.wait_for(lambda: w.is_gone, "the end of the stream")
        assert 1 not in w.closed
        assert worker.wait(WAIT_S) == 0


@pytest.mark.parametrize("how", ["signals", "stdin"])
def test_a_step_that_never_ends_does_not_keep_the_process(how: str) -> None:
    hang = ("--mock-fault", "hang=bad", "--exit-on-stdin-eof")
    with ScriptedRouter() as router, process(router.address, *hang) as worker:
        w = router.worker("w")
        w.send(open_compute(1, list(b"bad"), 5))
        router.wait_for(lambda: w.reports and w.last.running == 1, "the step")
        if how == "signals":
            worker.send_signal(signal.SIGTERM)
            router.wait_for(lambda: w.last.draining, "draining")
            worker.send_signal(signal.SIGTERM)
        else:
            assert worker.stdin is not None
            worker.stdin.close()
            worker.stdin = None
        assert worker.wait(WAIT_S) == 1


def test_a_process_that_was_frozen_beyond_its_lease_says_nothing_more_in_its_old_session() -> None:
    """Row A5. The router's heartbeats wait in its socket and must not bring the session back."""
    with ScriptedRouter(lease_ms=700) as router, process(router.address) as worker:
        first = router.worker("w")
        first.send(open_compute(1, [1, 2, 3], 100_000, ignore_eos=True))
        router.wait_for(lambda: 1 in first.tokens, "a token")
        worker.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        num_reports = len(first.reports)
        worker.send_signal(signal.SIGCONT)
        router.wait_for(lambda: first.is_gone, "the end of the stream")
        second = router.worker("w")
        assert second.session != first.session
        assert len(first.reports) == num_reports
        second.send(open_compute(1, [1, 2, 3], 5))
        router.wait_for(lambda: 1 in second.closed, "closed")
        before = first.tokens[1][:5]
        assert second.tokens[1][: len(before)] == before


def test_a_device_that_is_gone_ends_the_process_whatever_its_threads_do() -> None:
    """A thread that waits for such a device waits for ever, and so do destructors."""
    code = """
import sys, threading
from dopd.engine.mock import MockEngine
from dopd.worker import __main__ as worker

def broken(self, rows):
    threading.Thread(target=threading.Event().wait).start()
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

MockEngine.step = broken
sys.exit(worker.main(sys.argv[1:]))
"""
    with ScriptedRouter() as router:
        words = ["--mock", "--role", "mixed", "--name", "w", "--join", router.address]
        worker = subprocess.Popen(
            [sys.executable, "-c", code, *words],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "DOPD_JOIN_TOKEN": TOKEN},
        )
        try:
            w = router.worker("w")
            w.send(open_compute(1, [1, 2, 3], 5))
            router.wait_for(lambda: w.is_gone, "the end of the stream")
            assert worker.wait(WAIT_S) == lifecycle.EXIT_FAILED
        finally:
            worker.kill()
            _, errors = worker.communicate(timeout=WAIT_S)
    assert "illegal memory access" in errors and "this worker ends" in errors


class Turning:
    """What the watchdog looks at. Its loop turns until it is stuck."""

    is_stopped = False
    is_left = False
    next_step_s = 0.0

    def __init__(self, num_looks: int) -> None:
        self._looks_left = num_looks
        self._turns = 0

    @property
    def num_turns(self) -> int:
        self._turns += self._looks_left > 0
        self._looks_left -= 1
        return self._turns


@pytest.mark.parametrize(("next_step_s", "ticks"), [(0.0, 16), (0.001, 21)])
def test_the_watchdog_acts_on_a_loop_that_turns_no_more(next_step_s: float, ticks: int) -> None:
    turning, acted = Turning(100), []
    turning.next_step_s = next_step_s
    desk = cast(Desk, turning)
    lifecycle.watch(desk, lambda: acted.append(turning._looks_left), tick_s=0.001)
    assert acted == [-2 * ticks], "two looks a tick"


def test_the_watchdog_leaves_a_loop_alone_that_was_drained() -> None:
    """What a worker does after its last step is no part of the loop, and its exit code is 0."""
    turning, acted = Turning(3), []
    turning.is_left = True
    lifecycle.watch(cast(Desk, turning), lambda: acted.append(True), tick_s=0.001)
    assert not acted


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
    for name in ("dopd.engine.load", "dopd.engine.torch"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delattr(name, raising=False)
    monkeypatch.setattr(lifecycle, "ignore_interrupts", lambda: None)
    assert main(["--model", "x", "--role", "mixed", "--join", "127.0.0.1:1"]) == 2
    assert "needs the package torch: pip install 'dopd[worker]'" in capsys.readouterr().err


def test_importing_the_worker_is_cheap() -> None:
    """Nothing that a mock worker does not need: no torch, no numpy, no asyncio server, no TOML."""
    code = "import sys, dopd.worker.__main__, dopd.engine.mock; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "numpy", "msgspec", "tomllib", "rich", "dopd._router"}
