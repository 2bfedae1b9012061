"""Both clients and API keys."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import dopd
from tests.support import both_clients
from tests.support.server import Server, serve

BOTH = pytest.mark.parametrize("kind", ["Client", "AsyncClient"])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one key without limits, and for each client one of a request a minute."""
    path: Path = tmp_path_factory.mktemp("keys") / "dopd.toml"
    limits = {"free": "", "Client": "requests_per_minute = 1\n"}
    limits["AsyncClient"] = limits["Client"]
    path.write_text(
        "".join(
            f'[[key]]\nname = "{name}"\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n'
            f"{limit}"
            for name, limit in limits.items()
        )
    )
    with serve("--mock", "--config", path) as server:
        yield server


@BOTH
def test_a_key_opens_and_its_lack_is_told(kind: str, guarded: Server) -> None:
    with_key = {"api_key": "free"}
    answer = both_clients.call(kind, guarded.grpc, "generate", "x", max_tokens=2, client=with_key)
    assert answer.usage.completion_tokens == 2
    for settings in ({}, {"api_key": "wrong"}):
        with pytest.raises(dopd.UnauthenticatedError, match="DOPD_API_KEY") as caught:
            both_clients.call(kind, guarded.grpc, "models", client=settings)
        assert caught.value.reason == "unauthenticated"
        assert "wrong" not in str(caught.value)
    assert both_clients.call(kind, guarded.grpc, "health") in ("serving", "not_serving")


@BOTH
def test_a_quota_says_when_there_is_room_again(kind: str, guarded: Server) -> None:
    settings = {"api_key": kind}
    both_clients.call(kind, guarded.grpc, "generate", "x", max_tokens=1, client=settings)
    with pytest.raises(dopd.RateLimitedError) as caught:
        both_clients.call(kind, guarded.grpc, "generate", "x", max_tokens=1, client=settings)
    assert caught.value.retry_after_s is not None
    assert 30 < caught.value.retry_after_s <= 60
    assert (caught.value.attempts, caught.value.is_retryable) == (1, True)
