"""Rows D1 to D3, D6 and D10 of the matrix: the router dies, drains, and rolls."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.support.binaries import binary
from tests.support.faults import scenes
from tests.support.faults.fleet import Fleet, fleet
from tests.support.faults.traffic import Traffic, Verdict
from tests.support.faults.watch import record
from tests.support.processes import Process, ended, wait_for
from tests.support.server import ANY_PORTS


@pytest.mark.parametrize("kind", ["rust", "python"])
def test_d1_workers_of_a_killed_router_free_all_and_join_the_next(
    tmp_path: Path, kind: str
) -> None:
    with fleet(tmp_path, prefill=1, decode=2, kind=kind) as one:
        pids = [node.pid for node in one.nodes.values()]
        with one.ask(*scenes.mixed_asks(1, 30, 200, 300), clients=30) as traffic:
            scenes.when_busy(one.nodes["d0"], seats=5, steps=5)
            one.router.process.kill()
            one.restart_router()
            begun_s = time.monotonic()

            def adopted() -> bool:
                workers = one.router.status()["workers"]
                return len(workers) == 3 and all(w["state"] == "ready" for w in workers)

            wait_for(adopted, "all workers are adopted")
            record("D1", adopted_s=time.monotonic() - begun_s)
            results = traffic.finish()
        assert not results.of(Verdict.WRONG), "what clients saw before the break was right"
        assert {status for status, _ in results.errors} <= {"connection", "UNAVAILABLE"}
        assert [node.pid for node in one.nodes.values()] == pids
        one.settled()
        with one.ask(*scenes.mixed_asks(2, 20), clients=20) as traffic:
            traffic.finish().check(at_least=20)
        one.settled()


def accepted(one: Fleet, traffic: Traffic) -> int:
    """Requests that the router has or had."""
    fleet_ = one.router.status()
    running: int = fleet_["sequences_running"] + fleet_["requests_waiting"]
    return running + len(traffic.done)


@pytest.mark.timeout(120)
def test_d2_a_router_told_to_end_finishes_500_streams_first(tmp_path: Path) -> None:
    with fleet(tmp_path, prefill=1, decode=3, kind="rust") as one:
        with one.ask(*scenes.mixed_asks(3, 500, 150, 200), clients=500) as traffic:
            wait_for(lambda: accepted(one, traffic) >= 500, "every request is accepted")
            running = one.router.status()["sequences_running"]
            one.router.process.popen.send_signal(signal.SIGTERM)
            results = traffic.finish()
        assert running > 0
        results.check(at_least=500)
        assert one.router.process.popen.wait(30) == 0, one.router.process.told()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["rust", "python"])
def test_d3_every_worker_is_restarted_under_load_and_no_request_fails(
    tmp_path: Path, kind: str
) -> None:
    with fleet(tmp_path, kind=kind) as one:
        with one.traffic(seed=4, clients=12) as traffic:
            wait_for(lambda: traffic.count() > 20, "traffic flows")
            before = traffic.count()
            scenes.roll(one)
            wait_for(lambda: traffic.count() > before + 20, "traffic flows after it")
            results = traffic.stop()
        results.check(at_least=40)
        record("D3", requests=len(results.all), stall_s=results.longest_stall_s)
        one.settled()


def test_d6_the_age_of_connections_is_invisible(tmp_path: Path) -> None:
    config = tmp_path / "dopd.toml"
    config.write_text("[http]\nconnection_age_max_ms = 200\n[grpc]\nconnection_age_max_ms = 200\n")
    with fleet(tmp_path, "--config", str(config), prefill=1, decode=1, kind="rust") as one:
        with one.traffic(seed=5, clients=8, tokens_max=20) as traffic:
            wait_for(lambda: traffic.count() > 300, "connections have aged")
            traffic.stop().check(at_least=300)
        one.settled()


HOLD = """
import sys, threading, time
from dopd import _router
thread = threading.Thread(target=_router.main, args=(sys.argv[1:],), daemon=True)
thread.start()
for line in sys.stdin:
    # One operation of the interpreter: nobody else runs Python meanwhile.
    print("holds", flush=True)
    begun = time.monotonic()
    while time.monotonic() - begun < 3:
        pow(3, 1_000_000)
    print("held", flush=True)
"""


def test_d10_a_program_that_holds_the_interpreter_does_not_hold_the_router(tmp_path: Path) -> None:
    """The router runs inside of Python; every request is answered while Python is busy."""
    program = tmp_path / "host.py"
    program.write_text(HOLD)
    ready_file, token = tmp_path / "ready.json", tmp_path / "token"
    token.touch(0o600)
    token.write_text("token-of-the-tests-0123456789\n")
    words = (program, "router", "--mock", *ANY_PORTS, "--ready-file", ready_file)
    words += ("--join-token-file", token)
    host = Process(tmp_path / "host", *words, program=Path(sys.executable))
    with ended(host):
        found = wait_for(lambda: read_ready(ready_file), "the router is ready")
        words = ("--mock", "--role", "mixed", "--join", found["workers"])
        words += ("--join-token-file", str(token))
        worker = Process(tmp_path / "worker", *words, program=binary("dopd-mock"))
        with ended(worker), contextlib.closing(HTTPConnection(found["http"], timeout=30)) as client:
            wait_for(lambda: ask(client, "GET", "/ready")[0] == 200, "a worker is attached")
            assert host.popen.stdin is not None
            host.popen.stdin.write(b"hold\n")
            host.popen.stdin.flush()
            wait_for(lambda: "holds" in host.out.read_text(), "the interpreter is busy")
            body = {"model": "mock", "prompt": [1, 2], "max_tokens": 4, "temperature": 0}
            for _ in range(20):
                assert ask(client, "POST", "/v1/completions", body)[0] == 200
            assert "held" not in host.out.read_text(), "answers had to wait for Python"


def read_ready(path: Path) -> dict[str, str] | None:
    text = path.read_text() if path.exists() else ""
    return json.loads(text) if text.rstrip().endswith("}") else None


def ask(
    client: HTTPConnection, method: str, path: str, body: dict[str, object] | None = None
) -> tuple[int, bytes]:
    headers = {"content-type": "application/json"} if body else {}
    client.request(method, path, json.dumps(body) if body else None, headers)
    answer = client.getresponse()
    return answer.status, answer.read()
