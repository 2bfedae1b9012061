"""Keys and quotas as the client's own exceptions; every route but health wants a key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.conformance import CHAT
from tests.support.server import Server, serve

ASKED: dict[str, Any] = {"model": "mock", "messages": CHAT, "max_tokens": 4, "temperature": 0}
OPEN = ("/health", "/ready")


def key(name: str, more: str = "") -> str:
    """A table of the settings file; the key is its name with `sk-` before it."""
    digest = hashlib.sha256(f"sk-{name}".encode()).hexdigest()
    return f'[[key]]\nname = "{name}"\nsha256 = "{digest}"\n{more}'


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one free key, and one of two requests a minute."""
    config = tmp_path_factory.mktemp("keys") / "dopd.toml"
    config.write_text(key("free") + key("poor", "requests_per_minute = 2\n"))
    with serve("--mock", "--config", config) as server:
        yield server


def client(server: Server, api_key: str) -> openai.OpenAI:
    """A client that does not retry."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=api_key, max_retries=0, timeout=30)


def test_a_key_opens(guarded: Server) -> None:
    with client(guarded, "sk-free") as found:
        assert found.chat.completions.create(**ASKED).choices[0].message.content
        assert [model.id for model in found.models.list()] == ["mock"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("api_key", ["sk-other", "free", "sk-fre", "sk-free2", "none"])
def test_another_key_does_not(guarded: Server, api_key: str, stream: bool) -> None:
    with client(guarded, api_key) as found, pytest.raises(openai.AuthenticationError) as caught:
        found.chat.completions.create(**ASKED, stream=stream)
    error = caught.value
    assert (error.code, error.type) == ("unauthenticated", "authentication_error")
    assert error.response.headers["x-should-retry"] == "false"
    assert error.response.headers["www-authenticate"].lower().startswith("bearer")
    assert api_key not in error.message


def test_every_route_of_the_page_wants_a_key(guarded: Server) -> None:
    bearer = {"authorization": "Bearer sk-free"}
    page = guarded.call("GET", "/openapi.json", headers=bearer).json()
    for path, operations in page["paths"].items():
        (method,) = operations
        answer = guarded.call(method.upper(), path.replace("{model}", "mock"))
        assert (answer.status == 401) == (path not in OPEN), path


def test_a_spent_quota_says_when_to_come_back(guarded: Server) -> None:
    with client(guarded, "sk-poor") as found:
        for _ in range(2):
            found.chat.completions.create(**ASKED)
        with pytest.raises(openai.RateLimitError) as caught:
            found.chat.completions.create(**ASKED)
    error = caught.value
    assert (error.code, error.type) == ("rate_limited", "rate_limit_error")
    assert 0 < int(error.response.headers["retry-after-ms"]) <= 60_000
    assert int(error.response.headers["x-ratelimit-limit-requests"]) == 2
    assert int(error.response.headers["x-ratelimit-remaining-requests"]) == 0
    assert "x-should-retry" not in error.response.headers
