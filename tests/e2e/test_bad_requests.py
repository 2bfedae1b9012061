"""Bad input gets a clear error of OpenAI's form, and the server goes on."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from dopd.errors import BY_CODE
from tests.support.server import Answer, Server

GOOD: dict[str, Any] = {"model": "mock", "prompt": "hi", "max_tokens": 4}

# (name, body as sent, code, field or None, words of the message)
BODIES: list[tuple[str, bytes | dict[str, Any], str, str | None, str]] = [
    ("not json", b"{", "invalid_json", None, ""),
    ("an array", b"[]", "invalid_json", None, ""),
    ("not utf-8", b'{"prompt": "\xff"}', "invalid_json", None, ""),
    ("nan", b'{"model": "mock", "prompt": "hi", "temperature": NaN}', "invalid_json", None, ""),
    (
        "huge number",
        b'{"model": "mock", "prompt": "hi", "temperature": 1e999}',
        "invalid_",
        None,
        "",
    ),
    ("text as number", GOOD | {"max_tokens": "four"}, "invalid_", "max_tokens", ""),
    ("negative", GOOD | {"max_tokens": -1}, "invalid_", "max_tokens", ""),
    ("zero", GOOD | {"max_tokens": 0}, "invalid_value", "max_tokens", "0"),
    ("hot", GOOD | {"temperature": 2.5}, "invalid_value", "temperature", "2.5"),
    ("top_p", GOOD | {"top_p": 0}, "invalid_value", "top_p", "0"),
    ("many choices", GOOD | {"n": 17}, "invalid_value", "n", "16"),
    ("many stops", GOOD | {"stop": ["a"] * 17}, "invalid_value", "stop", "16"),
    ("empty prompt", GOOD | {"prompt": []}, "invalid_value", "prompt", ""),
    ("unknown token", GOOD | {"prompt": [1, 99999]}, "invalid_value", "prompt", "99999"),
    ("no prompt", {"model": "mock"}, "invalid_", "prompt", ""),
    ("long prompt", GOOD | {"prompt": [5] * 140_000}, "context_length_exceeded", None, "131072"),
    ("long answer", GOOD | {"max_tokens": 140_000}, "context_length_exceeded", None, "131072"),
    ("unknown model", GOOD | {"model": "gpt-9"}, "model_not_found", "model", "gpt-9"),
]


def assert_error(answer: Answer, code: str, field: str | None, words: str) -> None:
    """Status, type and code are those of the table; the message names value, limit and field."""
    error = answer.error()
    assert error["code"].startswith(code), error
    kind = BY_CODE[error["code"]]
    assert (answer.status, error["type"]) == (kind.http, kind.kind)
    assert words in error["message"], error
    assert error["message"][0].islower() or not error["message"][0].isalpha(), error
    if field is not None:
        assert (error["param"] or "").startswith(field), error


@pytest.mark.parametrize(
    ("body", "code", "field", "words"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES]
)
def test_bad_body(
    mock: Server, body: bytes | dict[str, Any], code: str, field: str | None, words: str
) -> None:
    assert_error(mock.call("POST", "/v1/completions", body), code, field, words)
    assert mock.complete("still here", max_tokens=1)["choices"]


def test_streamed_request_with_a_bad_field_gets_a_plain_error(mock: Server) -> None:
    answer = mock.call("POST", "/v1/completions", GOOD | {"stream": True, "top_p": 7})
    assert_error(answer, "invalid_value", "top_p", "7")


def test_unknown_route(mock: Server) -> None:
    assert_error(mock.get("/v1/nothing"), "not_found", None, "/v1/completions")


def test_wrong_method(mock: Server) -> None:
    assert_error(mock.get("/v1/completions"), "method_not_allowed", None, "")


def test_body_over_the_limit(mock: Server) -> None:
    """Refused by its declared length, before it is sent."""
    with contextlib.closing(mock.connection()) as connection:
        connection.putrequest("POST", "/v1/completions")
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", str(17 << 20))
        connection.endheaders()
        found = connection.getresponse()
        answer = Answer(found.status, {}, found.read())
    assert_error(answer, "body_too_large", None, "")


def test_prompt_text_over_the_limit(mock: Server) -> None:
    answer = mock.call("POST", "/v1/completions", GOOD | {"prompt": "x" * (9 << 20)})
    assert answer.status in {400, 413}


def test_messages_of_the_wrong_shape(mock: Server) -> None:
    for messages in (None, [], "hi", [{"role": "user"}], [{"role": "king", "content": "hi"}]):
        body = {"model": "mock", "messages": messages}
        answer = mock.call("POST", "/v1/chat/completions", body)
        assert_error(answer, "invalid_", "messages", "")
