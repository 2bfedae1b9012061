"""A made-up model through the whole house: no files, a real engine, bytes as tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.processes import run
from tests.support.server import Server, serve

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve("random:tiny:3", "--kv-memory", "16MiB") as running:
        yield running


def complete(server: Server, **fields: object) -> dict[str, object]:
    body = {"model": server.model, "prompt": "once upon", "max_tokens": 12, "ignore_eos": True}
    answer = server.call("POST", "/v1/completions", body | {"temperature": 0} | fields)
    assert answer.status == 200, answer.body
    found: dict[str, object] = answer.json()
    return found


def text(found: dict[str, object]) -> str:
    choices = found["choices"]
    assert isinstance(choices, list)
    return str(choices[0]["text"])


def test_every_token_is_seen_and_the_answer_is_the_seeds(server: Server) -> None:
    """Prefill and decode on separate workers, whose weights are alike."""
    assert server.model == "random:tiny:3"
    first = complete(server)
    assert text(complete(server)) == text(first) != ""
    assert first["usage"]["completion_tokens"] == 12  # type: ignore[index]
    assert text(complete(server, prompt="another")) != text(first)


def test_it_chats(server: Server) -> None:
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 4,
    }
    answer = server.call("POST", "/v1/chat/completions", body)
    assert answer.status == 200, answer.body


def test_a_shape_that_is_not_there_is_refused_with_those_that_are() -> None:
    done = run("serve", "random:huge")
    assert done.returncode == 2
    assert "no such shape; there are tiny, smollm2-135m, llama-3.1-8b" in done.stderr


def test_doctor_knows_it() -> None:
    done = run("doctor", "random:smollm2-135m")
    assert "random:smollm2-135m:0: random weights" in done.stdout
