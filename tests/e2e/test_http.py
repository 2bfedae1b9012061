"""The OpenAI front over real processes, as plain HTTP; the model is the mock."""

from __future__ import annotations

import json

import pytest

from tests.support import mock_model
from tests.support.server import Server

PROMPT = [7, 77, 177]
CHAT = [{"role": "user", "content": "What is the capital of France?"}]


def test_completion_of_token_ids_is_that_of_the_model(mock: Server) -> None:
    found = mock.complete(PROMPT, max_tokens=40, ignore_eos=True)
    expected = mock_model.answer(PROMPT, 40, ignore_eos=True)
    assert found["object"] == "text_completion"
    assert found["choices"][0]["text"] == mock_model.text(expected)
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"] == {"prompt_tokens": 3, "completion_tokens": 40, "total_tokens": 43} | {
        name: value for name, value in found["usage"].items() if name.endswith("_details")
    }


def test_completion_of_text_is_tokenized_without_a_template(mock: Server) -> None:
    found = mock.complete("héllo", max_tokens=8)
    expected = mock_model.answer(mock_model.encode("héllo"), 8)
    assert found["choices"][0]["text"] == mock_model.text(expected)


def test_chat_renders_the_template(mock: Server) -> None:
    body = {"model": mock.model, "messages": CHAT, "max_tokens": 24, "temperature": 0}
    found = mock.call("POST", "/v1/chat/completions", body).json()
    expected = mock_model.answer(mock_model.chat(CHAT), 24)
    assert found["object"] == "chat.completion"
    assert found["choices"][0]["message"]["role"] == "assistant"
    assert found["choices"][0]["message"]["content"] == mock_model.text(expected)


def test_the_end_token_ends_an_answer_and_is_not_shown(mock: Server) -> None:
    prompt = next(
        [seed] for seed in range(256) if mock_model.IM_END in mock_model.answer([seed], 200)
    )
    expected = mock_model.answer(prompt, 200)
    choice = mock.complete(prompt, max_tokens=200)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == mock_model.text(expected)


def test_streamed_chat_has_role_text_reason_usage_and_end(mock: Server) -> None:
    body = {"model": mock.model, "messages": CHAT, "max_tokens": 24, "temperature": 0}
    body["stream_options"] = {"include_usage": True}
    events = list(mock.events("/v1/chat/completions", body))
    assert events[-1] == "[DONE]"
    chunks = [event for event in events if isinstance(event, dict)]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    deltas = [c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]]
    assert "".join(deltas) == mock_model.text(mock_model.answer(mock_model.chat(CHAT), 24))
    reasons = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
    assert reasons[-1] == "length"
    assert not any(reasons[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 24
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_a_stop_string_ends_the_answer_and_is_cut(mock: Server) -> None:
    whole = mock.complete(PROMPT, max_tokens=64, ignore_eos=True)["choices"][0]["text"]
    stop = whole[20:24]
    choice = mock.complete(PROMPT, max_tokens=64, ignore_eos=True, stop=stop)["choices"][0]
    assert choice["text"] == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_choices_differ_and_each_is_that_of_the_model(mock: Server) -> None:
    found = mock.complete(PROMPT, max_tokens=12, n=3, temperature=1, seed=5)
    texts = {choice["index"]: choice["text"] for choice in found["choices"]}
    assert texts == {
        choice: mock_model.text(mock_model.answer(PROMPT, 12, temperature=1, seed=5, choice=choice))
        for choice in range(3)
    }
    assert found["usage"]["prompt_tokens"] == 3
    assert found["usage"]["completion_tokens"] == 36


def test_logprobs_name_the_chosen_token_first(mock: Server) -> None:
    body = {"model": mock.model, "messages": CHAT, "max_tokens": 6, "temperature": 0}
    body |= {"logprobs": True, "top_logprobs": 3}
    choice = mock.call("POST", "/v1/chat/completions", body).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == 6
    assert "".join(entry["token"] for entry in content) == choice["message"]["content"]
    for entry in content:
        assert len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0]["token"] == entry["token"]
        assert entry["logprob"] == pytest.approx(entry["top_logprobs"][0]["logprob"])
        assert entry["bytes"] == list(entry["token"].encode())


def test_one_connection_carries_many_requests(mock: Server) -> None:
    connection = mock.connection()
    body = json.dumps({"model": mock.model, "prompt": PROMPT, "max_tokens": 2})
    local = set()
    for _ in range(3):
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200
        answer.read()
        local.add(connection.sock.getsockname())
    connection.close()
    assert len(local) == 1


def test_models_names_the_served_one(mock: Server) -> None:
    found = mock.get("/v1/models").json()
    assert [model["id"] for model in found["data"]] == [mock.model]
    assert mock.get(f"/v1/models/{mock.model}").json()["object"] == "model"


def test_tokenize_counts_and_lists(mock: Server) -> None:
    found = mock.call("POST", "/tokenize", {"model": mock.model, "prompt": "hé"}).json()
    assert found["tokens"] == mock_model.encode("hé")
    assert found["count"] == 3


@pytest.mark.parametrize("path", ["/health", "/ready", "/version", "/metrics", "/status"])
def test_plain_pages_answer(mock: Server, path: str) -> None:
    assert mock.get(path).status == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/status"])
def test_admin_answers_on_its_own_port(mock: Server, path: str) -> None:
    assert mock.get(path, address=mock.admin).status == 200
