"""The client on a real vocabulary: characters over several tokens, stops over token borders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import conformance
from tests.support.conformance import WAYS, Clients
from tests.support.server import Server

pytestmark = [pytest.mark.model, pytest.mark.timeout(180)]

PROMPTS = {
    "english": "What is the capital of France?",
    "emoji": "Repeat exactly: \U0001f600\U0001f680\U0001f9d1\u200d\U0001f33e \U0001f1eb\U0001f1f7",
    "chinese": "Write the Chinese word for China, \u4e2d\u56fd, three times.",
    "accents": "Repeat: na\u00efve caf\u00e9 \u00fcber \u0159eka \u03c0\u03b1\u03c2",
}


@pytest.fixture(scope="module")
def real(smollm2: Server) -> Iterator[Clients]:
    """Both clients of SmolLM2."""
    yield from conformance.clients(smollm2)


def fields(name: str, **more: Any) -> dict[str, Any]:
    """A short greedy chat about one of the prompts."""
    messages = [{"role": "user", "content": PROMPTS[name]}]
    return {"messages": messages, "max_tokens": 20, "temperature": 0} | more


@pytest.fixture(scope="module")
def answers(real: Clients) -> dict[str, str]:
    """The whole answer to each prompt."""
    return {name: real.ask("chat", "whole", **fields(name)).texts[0] for name in PROMPTS}


@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize("name", PROMPTS)
def test_every_way_says_the_same(
    real: Clients, answers: dict[str, str], name: str, way: str
) -> None:
    found = real.ask("chat", way, **fields(name))
    assert found.texts == [answers[name]]


@pytest.mark.parametrize("name", PROMPTS)
def test_bytes_of_tokens_are_those_of_the_text(
    real: Clients, answers: dict[str, str], name: str
) -> None:
    found = real.sync.chat.completions.create(
        model="smollm2", **fields(name), logprobs=True, top_logprobs=2
    )
    logprobs = found.choices[0].logprobs
    assert logprobs is not None
    entries = logprobs.content or []
    written = b"".join(bytes(entry.bytes or []) for entry in entries)
    assert written.decode(errors="replace").startswith(answers[name])
    assert all(entry.top_logprobs[0].logprob >= entry.logprob for entry in entries)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cut", [3, 7, 11])
def test_a_stop_string_over_token_borders(
    real: Clients, answers: dict[str, str], cut: int, way: str
) -> None:
    whole = answers["english"]
    stop = whole[cut : cut + 5]
    found = real.ask("chat", way, **fields("english", stop=[stop]))
    assert found.texts == [whole[: whole.index(stop)]]
    assert found.reasons == ["stop"]


@pytest.mark.parametrize("prompt", list(PROMPTS.values()), ids=list(PROMPTS))
def test_echo_scores_each_token_of_the_prompt(real: Clients, prompt: str) -> None:
    found = real.sync.completions.create(
        model="smollm2", prompt=prompt, max_tokens=0, echo=True, logprobs=1, temperature=0
    )
    logprobs = found.choices[0].logprobs
    assert logprobs is not None
    assert found.choices[0].text == prompt
    assert found.usage is not None
    assert len(logprobs.tokens or []) == found.usage.prompt_tokens
    first, *others = logprobs.token_logprobs or []
    assert first is None
    assert all(value <= 0 for value in others)
    assert found.usage.completion_tokens == 0


@pytest.mark.parametrize("text", list(PROMPTS.values()), ids=list(PROMPTS))
def test_tokens_and_back(smollm2: Server, text: str) -> None:
    found = smollm2.call("POST", "/tokenize", {"model": "smollm2", "prompt": text}).json()
    back = smollm2.call(
        "POST", "/detokenize", {"model": "smollm2", "tokens": found["tokens"]}
    ).json()
    assert back == {"prompt": text}
