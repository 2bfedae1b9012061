"""SIGTERM: what runs ends well, what comes is refused, and both are told."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import dopd
from tests.support.processes import is_alive, wait_for
from tests.support.server import Server, serve

# Steps of a GPU: some 3 s, longer than a test needs to look at it.
LONG = {"model": "mock", "prompt": [9] * 100, "max_tokens": 400, "ignore_eos": True}
ENDLESS = LONG | {"max_tokens": 100_000}
SHORT = LONG | {"max_tokens": 4}


@pytest.fixture
def slow() -> Iterator[Server]:
    with serve("--mock", "--mock-timings", "h100-8b") as server:
        yield server


def cut(tmp_path: Path, drain_timeout_ms: int) -> Path:
    config = tmp_path / "dopd.toml"
    config.write_text(f"[limits]\ndrain_timeout_ms = {drain_timeout_ms}\n")
    return config


def drain(server: Server) -> None:
    """Tell it to end, and wait until it has heard."""
    server.process.popen.send_signal(signal.SIGTERM)
    wait_for(lambda: server.get("/ready").status == 503, "it is not ready")


def test_while_an_answer_runs_others_are_refused_and_told_to_go(slow: Server) -> None:
    events = slow.events("/v1/completions", LONG)
    next(events)
    drain(slow)
    assert slow.get("/ready").json()["status"] == "draining"
    assert slow.get("/health").status == 200, "it lives"
    assert slow.get("/ready", address=slow.admin).json()["status"] == "draining"
    refused = slow.call("POST", "/v1/completions", SHORT)
    assert (refused.status, refused.error()["code"]) == (503, "draining")
    assert int(refused.headers["retry-after-ms"]) > 0
    assert refused.headers["connection"] == "close"
    *_, last = events
    assert last == "[DONE]"
    assert slow.process.popen.wait(30) == 0


def test_grpc_health_says_not_serving_and_its_watch_ends(slow: Server) -> None:
    with grpc.insecure_channel(slow.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        # It looks every so often, and the server has only just started.
        while next(watch).status != health_pb2.HealthCheckResponse.SERVING:
            pass
        events = slow.events("/v1/completions", LONG)
        next(events)
        slow.process.popen.send_signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with grpc.insecure_channel(slow.grpc) as late:
            answer = health_pb2_grpc.HealthStub(late).Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert list(events)[-1] == "[DONE]"
        assert list(watch) == [], "it ends, and well"
        assert slow.process.popen.wait(30) == 0
        said = slow.process.log.read_text()
        assert "did not end in time" not in said, "nobody waits for a client that watches"


def error_of_http(server: Server, started: Callable[[], None]) -> str:
    events = server.events("/v1/completions", ENDLESS)
    next(events)
    started()
    *_, last = events
    assert isinstance(last, dict), "an error, and no [DONE]"
    return str(last["error"]["code"])


def error_of_grpc(server: Server, started: Callable[[], None]) -> str:
    with dopd.Client(server.grpc) as client:
        stream = client.stream_generate([9] * 100, max_tokens=100_000, ignore_eos=True)
        next(iter(stream))
        started()
        with pytest.raises(dopd.UnavailableError) as caught:
            for _ in stream:
                pass
    return str(caught.value.reason)


@pytest.mark.parametrize("error", [error_of_http, error_of_grpc])
def test_what_does_not_end_in_time_gets_an_error(
    error: Callable[[Server, Callable[[], None]], str], tmp_path: Path
) -> None:
    config = cut(tmp_path, 200)
    with serve("--mock", "--mock-timings", "h100-8b", "--config", config) as server:
        assert error(server, lambda: drain(server)).lower() == "draining"
        assert server.process.popen.wait(30) == 0


def test_a_second_signal_ends_it_within_a_second(slow: Server) -> None:
    events = slow.events("/v1/completions", ENDLESS)
    next(events)
    drain(slow)
    pids = [worker["pid"] for worker in slow.status()["workers"]]
    started = time.monotonic()
    slow.process.popen.send_signal(signal.SIGTERM)
    assert slow.process.popen.wait(30) == 130
    # A second is promised; a busy machine may take some more to notice.
    assert time.monotonic() - started < 3
    slow.process.assert_nothing_left()
    assert not any(map(is_alive, pids))
