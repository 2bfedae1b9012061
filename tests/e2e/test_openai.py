"""The real `openai` client with only `base_url` changed."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.support import mock_model
from tests.support.server import Server

CHAT = [{"role": "user", "content": "hello"}]
EXPECTED = mock_model.text(mock_model.answer(mock_model.chat(CHAT), 16))


@pytest.fixture
def client(mock: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{mock.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["mock"]


def test_chat(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="mock", messages=CHAT, max_tokens=16, temperature=0
    )
    assert found.choices[0].message.content == EXPECTED
    assert found.usage.completion_tokens == 16


def test_chat_streamed(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="mock",
        messages=CHAT,
        max_completion_tokens=16,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == EXPECTED
    assert chunks[-1].usage.total_tokens == len(mock_model.chat(CHAT)) + 16


def test_choices_stop_and_logprobs(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="mock",
        messages=CHAT,
        max_tokens=16,
        temperature=0,
        n=2,
        stop=[EXPECTED[8:10]],
        logprobs=True,
        top_logprobs=2,
    )
    assert [choice.message.content for choice in found.choices] == [
        EXPECTED[: EXPECTED.index(EXPECTED[8:10])]
    ] * 2
    assert all(choice.finish_reason == "stop" for choice in found.choices)
    assert len(found.choices[0].logprobs.content[0].top_logprobs) == 2


def test_completions(client: openai.OpenAI) -> None:
    found = client.completions.create(
        model="mock", prompt=[1, 2, 3], max_tokens=8, temperature=0, logprobs=2
    )
    assert found.choices[0].text == mock_model.text(mock_model.answer([1, 2, 3], 8))
    assert len(found.choices[0].logprobs.token_logprobs) == 8
    assert len(found.choices[0].logprobs.top_logprobs[0]) == 2


def test_completions_streamed(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="mock", prompt="hi", max_tokens=8, temperature=0, stream=True
    )
    expected = mock_model.text(mock_model.answer(mock_model.encode("hi"), 8))
    assert "".join(chunk.choices[0].text for chunk in stream) == expected


def test_errors_become_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nope", messages=CHAT)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="mock", messages=CHAT, temperature=9)
    assert (bad.value.code, bad.value.param) == ("invalid_value", "temperature")
