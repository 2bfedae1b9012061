"""Local workers are replaced under load, and no client notices."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support import mock_model
from tests.support.faults.traffic import Traffic, asks
from tests.support.processes import wait_for
from tests.support.server import Server, serve

# Steps of a GPU: answers run for longer than a worker needs to be replaced.
TIMINGS = ("--mock", "--mock-timings", "h100-8b")
CHECKS = ("--worker-arg=--debug-checks", "--worker-arg=--kv-poison")
ROLL_S = 60.0


def pids(server: Server) -> dict[str, int]:
    return {worker["id"]: worker["pid"] for worker in server.status()["workers"]}


def has_rolled(server: Server, times: int) -> bool:
    return server.process.told().count("rolling restart done") >= times


def is_only(server: Server, name: str) -> bool:
    return list(pids(server)) == [name]


@contextmanager
def under_load(server: Server) -> Iterator[Traffic]:
    """Every answer is checked token by token; each must be right."""
    traffic = Traffic(server.http, server.grpc, asks(1, tokens_max=150), clients=6)
    with traffic:
        wait_for(lambda: traffic.count() >= 10, "answers come")
        yield traffic
        done = traffic.count()
        wait_for(lambda: traffic.count() >= done + 10, "answers still come")
        traffic.stop().check(at_least=20)
    assert server.status()["replays_by"].get("worker_died", 0) == 0
    server.wait_idle()


def told(server: Server, text: str) -> bool:
    return text in server.process.log.read_text()


@pytest.mark.parametrize(
    "fleet",
    [
        ("--prefill", "1", "--decode", "1"),
        pytest.param(("--prefill", "2", "--decode", "2"), marks=pytest.mark.soak),
        ("--prefill", "0", "--decode", "0", "--mixed", "1"),
    ],
    ids=["1 prefill 1 decode", "2 prefill 2 decode", "1 mixed"],
)
def test_all_workers_are_replaced_under_load_without_a_failure(fleet: tuple[str, ...]) -> None:
    with serve(*TIMINGS, *CHECKS, *fleet) as server:
        before = pids(server)
        not_ready = []
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.02):
                answer = server.get("/ready")
                if answer.status != 200:
                    not_ready.append(answer.body)

        watcher = threading.Thread(target=watch)
        watcher.start()
        with under_load(server):
            server.process.popen.send_signal(signal.SIGHUP)
            wait_for(lambda: told(server, "rolling restart done"), "the roll is over", ROLL_S)
            after = pids(server)
        stop.set()
        watcher.join()
        assert not not_ready
        assert len(after) == len(before)
        assert not set(after.values()) & set(before.values()), "each has a new process"
        metrics = server.get("/metrics").body.decode()
        assert "dopd_worker_restarts_total{" not in metrics, "none of them died"


def test_a_single_worker_has_another_name_until_the_next_restart() -> None:
    with serve("--mock", "--prefill", "0", "--decode", "0", "--mixed", "1") as server:
        for rolls, name in enumerate(("mixed-0.next", "mixed-0"), 1):
            server.process.popen.send_signal(signal.SIGHUP)
            wait_for(partial(is_only, server, name), f"{name} alone")
            # Until then another SIGHUP changes nothing.
            is_over = partial(has_rolled, server, rolls)
            wait_for(is_over, "the roll is over")


def test_an_operator_ends_one_worker_and_nobody_notices() -> None:
    with serve(*TIMINGS, *CHECKS, "--prefill", "1", "--decode", "2") as server:
        victim = pids(server)["decode-1"]
        with under_load(server):
            os.kill(victim, signal.SIGTERM)
            wait_for(lambda: pids(server).get("decode-1", victim) != victim, "a successor", ROLL_S)


def test_long_answers_go_on_elsewhere_when_the_drain_time_is_over(tmp_path: Path) -> None:
    config = tmp_path / "dopd.toml"
    config.write_text("[cluster]\ndrain_timeout_ms = 200\n")
    prompt = [9] * 100
    body = {"model": "mock", "prompt": prompt, "max_tokens": 400, "ignore_eos": True}
    with serve(*TIMINGS, "--prefill", "0", "--decode", "3", "--config", config) as server:
        whole = mock_model.text(mock_model.answer(prompt, 400, ignore_eos=True))
        events = server.events("/v1/completions", body | {"temperature": 0})
        pieces = [next(events)]
        server.process.popen.send_signal(signal.SIGHUP)
        wait_for(lambda: told(server, "rolling restart done"), "the roll is over", ROLL_S)
        pieces += events
        assert pieces[-1] == "[DONE]"
        text = "".join(
            piece["choices"][0]["text"]
            for piece in pieces
            if isinstance(piece, dict) and piece["choices"]
        )
        assert text == whole
        assert server.wait_idle()["replays_total"] >= 1


def test_a_successor_that_cannot_start_ends_the_roll_and_the_old_one_serves(
    tmp_path: Path,
) -> None:
    script = tmp_path / "worker.sh"
    stop = tmp_path / "stop"
    script.write_text(
        f'#!/bin/sh\n[ -e {stop} ] && exit 3\nexec {sys.executable} -m dopd worker "$@"\n'
    )
    script.chmod(0o755)
    words = ("--mock", "--prefill", "0", "--decode", "0", "--mixed", "1")
    with serve(*words, "--worker-command", script) as server:
        before = pids(server)
        stop.touch()
        server.process.popen.send_signal(signal.SIGHUP)
        wait_for(lambda: told(server, "rolling restart given up"), "the roll is given up")
        assert told(server, "the successor ended before it attached")
        assert pids(server) == before
        server.complete([1, 2, 3], max_tokens=4)
