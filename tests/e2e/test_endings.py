"""A client that leaves, a deadline that passes: pages on both sides come back."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import wait_for
from tests.support.server import Server, serve

LONG = {"model": "mock", "prompt": [9] * 100, "max_tokens": 100_000, "ignore_eos": True}


@pytest.fixture(scope="module")
def slow() -> Iterator[Server]:
    """Steps take as long as on a GPU, so that an answer is still running when a test looks."""
    with serve("--mock", "--mock-timings", "h100-8b") as server:
        yield server


def test_a_streaming_client_that_leaves_frees_its_pages(slow: Server) -> None:
    events = slow.events("/v1/completions", LONG)
    for _ in range(3):
        next(events)
    assert any(worker["pages"]["owned"] for worker in slow.status()["workers"])
    events.close()
    slow.wait_idle()


def test_a_waiting_client_that_leaves_frees_its_pages(slow: Server) -> None:
    host, port = slow.http.split(":")
    body = json.dumps(LONG).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + body)
        wait_for(lambda: slow.status()["sequences_running"] == 1, "the request runs")
    slow.wait_idle()


def test_a_deadline_ends_a_request_with_its_own_error(tmp_path: Path) -> None:
    config = tmp_path / "dopd.toml"
    limits = ("request_timeout_ms", "no_worker_wait_ms", "slow_reader_timeout_ms")
    config.write_text("[limits]\n" + "".join(f"{name} = 400\n" for name in limits))
    with serve("--mock", "--mock-timings", "h100-8b", "--config", config) as server:
        answer = server.call("POST", "/v1/completions", LONG)
        assert answer.status == 504
        assert answer.error()["code"] == "deadline_exceeded"
        *_, last = server.events("/v1/completions", LONG)
        assert isinstance(last, dict)
        assert last["error"]["code"] == "deadline_exceeded"
        server.wait_idle()


def test_without_a_worker_a_request_gets_an_error_in_time(tmp_path: Path) -> None:
    config = tmp_path / "dopd.toml"
    config.write_text("[limits]\nno_worker_wait_ms = 200\n")
    with serve("--mock", "--config", config, command="router") as server:
        assert server.get("/ready").status == 503
        assert server.get("/health").status == 200
        answer = server.call("POST", "/v1/completions", LONG)
        assert (answer.status, answer.error()["code"]) == (503, "no_worker")
        assert int(answer.headers["retry-after-ms"]) > 0
