"""Latency targets at a real server: who is refused for one is told the same by both fronts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dopd
from tests.support import both_clients
from tests.support.server import Server, serve


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A router without workers that has no patience with who is late."""
    path: Path = tmp_path_factory.mktemp("targets") / "dopd.toml"
    path.write_text("[policy]\nlate_max_ms = 0\n")
    with serve("--mock", "--config", path, command="router") as server:
        yield server


def told(message: str) -> tuple[int, str]:
    """How long it waited, and the rest of the message."""
    found = re.match(r"no worker was free for (\d+) ms, ", message)
    assert found, message
    return int(found[1]), message[found.end() :]


def test_who_is_late_is_told_its_numbers_on_both_fronts(strict: Server) -> None:
    target = {"prompt": "x", "max_tokens": 2, "slo_ttft_ms": 40}
    answer = strict.call("POST", "/v1/completions", {"model": "mock"} | target)
    assert (answer.status, answer.error()["code"]) == (503, "slo_late")
    assert int(answer.headers["retry-after-ms"]) > 0
    with pytest.raises(dopd.OverloadedError) as caught:
        both_clients.call("Client", strict.grpc, "generate", "x", max_tokens=2, slo_ttft_ms=40)
    assert caught.value.reason == "slo_late"
    assert caught.value.retry_after_s
    (waited, rest), again = told(answer.error()["message"]), told(caught.value.message)
    assert min(waited, again[0]) >= 40
    assert rest == again[1]
    assert "the target for the first token is 40 ms" in rest
    assert "policy.late_max_ms" in rest
