"""Shapes of answers: log probabilities, chunks, usage, ids; by the client and against the page."""

from __future__ import annotations

import json
import math
from typing import Any

import jsonschema_rs
import pytest

from tests.support import mock_model
from tests.support.conformance import CHAT, Clients
from tests.support.server import Server

PROMPT = mock_model.encode("Once upon a time")
ANSWER = mock_model.answer(PROMPT, 8)
TEXT: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
TALK: dict[str, Any] = {"messages": CHAT, "max_tokens": 8, "temperature": 0}
TALKED = mock_model.answer(mock_model.chat(CHAT), 8)


def events(server: Server, path: str, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a stream that ends as it must."""
    *chunks, last = server.events(path, {"model": server.model} | fields)
    assert last == "[DONE]"
    assert all(isinstance(chunk, dict) for chunk in chunks)
    return chunks  # type: ignore[return-value]


@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_chat_logprobs(clients: Clients, top: int) -> None:
    found = clients.sync.chat.completions.create(
        model="mock", **TALK, logprobs=True, top_logprobs=top
    )
    logprobs = found.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert logprobs.refusal is None
    assert "".join(entry.token for entry in logprobs.content) == mock_model.text(TALKED)
    for entry in logprobs.content:
        assert entry.bytes == list(entry.token.encode())
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == top
        descending = [option.logprob for option in entry.top_logprobs]
        assert descending == sorted(descending, reverse=True)


@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_text_logprobs(clients: Clients, top: int) -> None:
    found = clients.sync.completions.create(model="mock", **TEXT, logprobs=top)
    logprobs = found.choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or []) == mock_model.text(ANSWER)
    assert logprobs.text_offset == list(range(8))
    assert len(logprobs.token_logprobs or []) == 8
    for token, chosen, options in zip(
        logprobs.tokens or [],
        logprobs.token_logprobs or [],
        logprobs.top_logprobs or [],
        strict=True,
    ):
        assert options[token] == chosen
        assert max(1, top) <= len(options) <= top + 1


def test_logprobs_of_a_stream_are_those_of_the_whole(mock: Server) -> None:
    fields = TEXT | {"logprobs": 3}
    whole = mock.call("POST", "/v1/completions", {"model": "mock"} | fields).json()
    columns: dict[str, list[Any]] = {}
    for chunk in events(mock, "/v1/completions", **fields):
        for choice in chunk["choices"]:
            for name, column in (choice["logprobs"] or {}).items():
                columns.setdefault(name, []).extend(column)
    assert columns == whole["choices"][0]["logprobs"]


def test_chat_logprobs_of_a_stream_are_those_of_the_whole(mock: Server) -> None:
    fields = TALK | {"logprobs": True, "top_logprobs": 3}
    whole = mock.call("POST", "/v1/chat/completions", {"model": "mock"} | fields).json()
    content = [
        entry
        for chunk in events(mock, "/v1/chat/completions", **fields)
        for choice in chunk["choices"]
        for entry in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert content == whole["choices"][0]["logprobs"]["content"]


def test_echo_with_logprobs_scores_the_prompt(clients: Clients) -> None:
    """What lm-eval asks: the first token has none, all others have one, nothing is generated."""
    fields = TEXT | {"echo": True, "max_tokens": 0, "logprobs": 1}
    found = clients.sync.completions.create(model="mock", **fields)
    logprobs = found.choices[0].logprobs
    assert logprobs is not None
    assert found.choices[0].text == TEXT["prompt"]
    assert "".join(logprobs.tokens or []) == TEXT["prompt"]
    first, *others = logprobs.token_logprobs or []
    assert first is None
    assert len(others) == len(PROMPT) - 1
    assert all(isinstance(value, float) and math.isfinite(value) for value in others)
    assert (logprobs.top_logprobs or [0])[0] is None
    assert found.usage is not None
    assert found.usage.completion_tokens == 0


def test_echo_with_logprobs_and_an_answer(clients: Clients) -> None:
    fields = TEXT | {"echo": True, "max_tokens": 1, "logprobs": 1}
    found = clients.sync.completions.create(model="mock", **fields)
    logprobs = found.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.tokens or []) == len(PROMPT) + 1
    assert (logprobs.text_offset or [])[-1] == len(TEXT["prompt"])


def test_best_of_tells_the_likeliest(clients: Clients) -> None:
    fields = TEXT | {"temperature": 1, "seed": 3}
    made = clients.sync.completions.create(model="mock", **fields, n=4, logprobs=0)

    def mean(choice: Any) -> float:
        chosen = choice.logprobs.token_logprobs
        return float(sum(chosen) / len(chosen))

    told = clients.sync.completions.create(model="mock", **fields, n=2, best_of=4)
    best = sorted(made.choices, key=mean, reverse=True)[:2]
    assert [choice.text for choice in told.choices] == [choice.text for choice in best]
    assert told.usage is not None
    assert told.usage.completion_tokens == 4 * 8


def test_token_ids_are_returned(mock: Server) -> None:
    body = {"model": "mock", "return_token_ids": True} | TEXT
    (choice,) = mock.call("POST", "/v1/completions", body).json()["choices"]
    assert choice["token_ids"] == ANSWER
    assert choice["prompt_token_ids"] == PROMPT


def test_token_ids_of_a_stream(mock: Server) -> None:
    chunks = events(mock, "/v1/completions", return_token_ids=True, **TEXT)
    ids = [id for chunk in chunks for c in chunk["choices"] for id in c.get("token_ids") or []]
    assert ids == ANSWER


def test_the_first_chunk_of_each_choice_has_the_role(mock: Server) -> None:
    chunks = events(mock, "/v1/chat/completions", n=3, **TALK)
    first: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            first.setdefault(choice["index"], choice["delta"])
    assert sorted(first) == [0, 1, 2]
    assert all(delta == {"role": "assistant", "content": ""} for delta in first.values())


def test_usage_is_null_until_the_last_chunk(mock: Server) -> None:
    chunks = events(mock, "/v1/completions", stream_options={"include_usage": True}, **TEXT)
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == len(PROMPT) + 8


def test_usage_is_absent_unless_asked_for(mock: Server) -> None:
    for chunk in events(mock, "/v1/completions", **TEXT):
        assert "usage" not in chunk


def test_usage_so_far(mock: Server) -> None:
    """`continuous_usage_stats` of vLLM, which its benchmark sends."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(mock, "/v1/completions", stream_options=options, **TEXT)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 8


def test_ids_differ_and_created_is_one_of_a_stream(mock: Server) -> None:
    streams = [events(mock, "/v1/completions", **TEXT) for _ in range(2)]
    ids = [{chunk["id"] for chunk in chunks} for chunks in streams]
    assert all(len(found) == 1 for found in ids)
    assert ids[0] != ids[1]
    assert len({chunk["created"] for chunk in streams[0]}) == 1


def test_fingerprint_is_one_of_all_answers(clients: Clients) -> None:
    chat = clients.sync.chat.completions.create(model="mock", **TALK)
    text = clients.sync.completions.create(model="mock", **TEXT)
    assert chat.system_fingerprint == text.system_fingerprint
    assert (chat.system_fingerprint or "").startswith("fp_")


@pytest.mark.parametrize(
    ("path", "fields", "schema"),
    [
        ("/v1/chat/completions", TALK | {"logprobs": True, "top_logprobs": 2}, "ChatChunk"),
        ("/v1/chat/completions", TALK | {"n": 2}, "ChatChunk"),
        ("/v1/completions", TEXT | {"logprobs": 2, "n": 2}, "CompletionChunk"),
        ("/v1/completions", TEXT | {"echo": True, "logprobs": 1}, "CompletionChunk"),
    ],
)
def test_chunks_are_of_the_page(
    mock: Server, path: str, fields: dict[str, Any], schema: str
) -> None:
    page = mock.get("/openapi.json").json()
    whole = {"$ref": f"#/components/schemas/{schema}", "components": page["components"]}
    check = jsonschema_rs.Draft202012Validator(whole)
    for chunk in events(mock, path, stream_options={"include_usage": True}, **fields):
        check.validate(chunk)


def test_events_are_lines_of_data_and_blank_lines(mock: Server) -> None:
    connection = mock.connection()
    body = json.dumps({"model": "mock", "stream": True} | TEXT)
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    text = connection.getresponse().read().decode()
    connection.close()
    assert text.endswith("\n\n")
    assert "\r" not in text
    for event in text.removesuffix("\n\n").split("\n\n"):
        assert event.startswith("data: ")
        assert "\n" not in event


def test_tokenize_and_back(mock: Server) -> None:
    text = "na\u00efve \u4f60\u597d \U0001f600"
    asked = {"model": "mock", "prompt": text, "return_token_strs": True}
    found = mock.call("POST", "/tokenize", asked).json()
    assert found["tokens"] == list(text.encode())
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["max_model_len"] == 131_072
    back = mock.call("POST", "/detokenize", {"model": "mock", "tokens": found["tokens"]})
    assert back.json() == {"prompt": text}


def test_tokenize_of_a_chat(mock: Server) -> None:
    found = mock.call("POST", "/tokenize", {"model": "mock", "messages": CHAT}).json()
    assert found["tokens"] == mock_model.chat(CHAT)


def test_tokenize_of_two_things_is_refused(mock: Server) -> None:
    asked = {"model": "mock", "messages": CHAT, "prompt": "hello"}
    for body in (asked, dict(reversed(asked.items()))):
        error = mock.call("POST", "/tokenize", body).error()
        assert (error["code"], error["param"]) == ("invalid_value", "messages")
