"""Every field that is accepted, with the answer that it must leave or make, in all four ways."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import mock_model
from tests.support.conformance import CHAT, WAYS, Clients

NUM_TOKENS = 12
CHAT_PROMPT = mock_model.chat(CHAT)
PART = {"type": "text", "text": "hello"}
TEXT = "Once upon a time"
TEXT_PROMPT = mock_model.encode(TEXT)


def greedy(prompt: list[int], num_tokens: int = NUM_TOKENS, **options: Any) -> str:
    """Text of the mock's answer."""
    return mock_model.text(mock_model.answer(prompt, num_tokens, **options))


# Fields that leave the greedy answer as it is, on both routes.
NEUTRAL: list[tuple[str, dict[str, Any]]] = [
    ("nothing", {}),
    ("user", {"user": "somebody"}),
    ("seed", {"seed": 7}),
    ("seed.negative", {"seed": -7}),
    ("seed.largest", {"seed": 2**64 - 1}),
    ("n.1", {"n": 1}),
    ("top_p.1", {"top_p": 1}),
    ("top_p.low", {"top_p": 0.01}),
    ("top_k.0", {"top_k": 0}),
    ("top_k.all", {"top_k": -1}),
    ("top_k.1", {"top_k": 1}),
    ("top_k.more_than_there_are", {"top_k": 1_000_000}),
    ("min_p.0", {"min_p": 0}),
    ("min_p.1", {"min_p": 1}),
    ("presence_penalty.0", {"presence_penalty": 0}),
    ("presence_penalty.2", {"presence_penalty": 2}),
    ("presence_penalty.-2", {"presence_penalty": -2}),
    ("frequency_penalty.0", {"frequency_penalty": 0}),
    ("frequency_penalty.2", {"frequency_penalty": 2}),
    ("frequency_penalty.-2", {"frequency_penalty": -2}),
    ("repetition_penalty.1", {"repetition_penalty": 1}),
    ("repetition_penalty.1.5", {"repetition_penalty": 1.5}),
    ("logit_bias.empty", {"logit_bias": {}}),
    ("logit_bias.zero", {"logit_bias": {"65": 0}}),
    ("min_tokens.0", {"min_tokens": 0}),
    ("min_tokens.all", {"min_tokens": NUM_TOKENS}),
    ("ignore_eos", {"ignore_eos": True}),
    ("stop.null", {"stop": None}),
    ("stop.none", {"stop": []}),
    ("stop.absent", {"stop": "\u00e9"}),
    ("stop.most", {"stop": [f"\u00e9{number}" for number in range(16)]}),
    ("stop_token_ids.none", {"stop_token_ids": []}),
    ("stop_token_ids.absent", {"stop_token_ids": [0, 1, 2]}),
    ("priority.high", {"priority": -5}),
    ("priority.low", {"priority": 5}),
    ("slo_ttft_ms", {"slo_ttft_ms": 60_000}),
    ("slo_tpot_ms", {"slo_tpot_ms": 1}),
    ("cache_salt", {"cache_salt": "salt"}),
    ("cache_salt.empty", {"cache_salt": ""}),
    ("return_token_ids", {"return_token_ids": True}),
    ("skip_special_tokens", {"skip_special_tokens": True}),
    ("include_stop_str.without_stop", {"include_stop_str_in_output": True}),
    ("truncate_prompt_tokens.fit", {"truncate_prompt_tokens": -1}),
    ("truncate_prompt_tokens.long", {"truncate_prompt_tokens": 100_000}),
    ("structured_outputs.null", {"structured_outputs": None}),
    ("guided_json.null", {"guided_json": None}),
    ("use_beam_search.false", {"use_beam_search": False}),
    ("length_penalty.1", {"length_penalty": 1}),
    ("bad_words.none", {"bad_words": []}),
    ("kv_transfer_params.null", {"kv_transfer_params": None}),
    ("spaces_between_special_tokens", {"spaces_between_special_tokens": True}),
    ("unknown_field", {"some_future_field": {"a": [1, 2]}}),
]
# The same, of the chat alone.
CHAT_NEUTRAL: list[tuple[str, dict[str, Any]]] = [
    ("max_completion_tokens_wins", {"max_completion_tokens": NUM_TOKENS, "max_tokens": 3}),
    ("metadata", {"metadata": {"run": "7"}}),
    ("store", {"store": True}),
    ("service_tier", {"service_tier": "auto"}),
    ("safety_identifier", {"safety_identifier": "abc"}),
    ("prompt_cache_key", {"prompt_cache_key": "abc"}),
    ("prompt_cache_retention", {"prompt_cache_retention": "24h"}),
    ("parallel_tool_calls", {"parallel_tool_calls": True}),
    ("modalities.text", {"modalities": ["text"]}),
    ("prediction", {"prediction": {"type": "content", "content": "x"}}),
    ("web_search_options", {"web_search_options": {}}),
    ("reasoning_effort.none", {"reasoning_effort": "none"}),
    ("verbosity.medium", {"verbosity": "medium"}),
    ("response_format.text", {"response_format": {"type": "text"}}),
    ("tools.none", {"tools": []}),
    ("tool_choice.none", {"tool_choice": "none"}),
    ("tool_choice.auto", {"tool_choice": "auto"}),
    (
        "tools.unused",
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            "tool_choice": "none",
        },
    ),
    ("functions.none", {"functions": []}),
    ("logprobs.false", {"logprobs": False}),
    ("top_logprobs.0", {"top_logprobs": 0}),
    ("logprobs.20", {"logprobs": True, "top_logprobs": 20}),
    ("add_generation_prompt", {"add_generation_prompt": True}),
    ("continue_final_message.false", {"continue_final_message": False}),
    ("chat_template_kwargs.empty", {"chat_template_kwargs": {}}),
    ("documents.none", {"documents": []}),
    ("content.parts", {"messages": [{"role": "user", "content": [PART]}]}),
    ("message.name", {"messages": [{"role": "user", "content": "hello", "name": "Ann"}]}),
]
# The same, of completions alone.
TEXT_NEUTRAL: list[tuple[str, dict[str, Any]]] = [
    ("suffix.null", {"suffix": None}),
    ("suffix.empty", {"suffix": ""}),
    ("echo.false", {"echo": False}),
    ("best_of.1", {"best_of": 1}),
    ("logprobs.0", {"logprobs": 0}),
    ("logprobs.20", {"logprobs": 20}),
    ("prompt.tokens", {"prompt": TEXT_PROMPT}),
    ("prompt.list_of_one", {"prompt": [TEXT]}),
    ("prompt.list_of_tokens", {"prompt": [TEXT_PROMPT]}),
    ("add_special_tokens", {"add_special_tokens": True}),
    ("add_special_tokens.false", {"add_special_tokens": False}),
]

CHAT_ROWS = [*NEUTRAL, *CHAT_NEUTRAL]
TEXT_ROWS = [*NEUTRAL, *TEXT_NEUTRAL]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fields", [r[1] for r in CHAT_ROWS], ids=[r[0] for r in CHAT_ROWS])
def test_chat(clients: Clients, fields: dict[str, Any], way: str) -> None:
    """The answer is the same as without the field."""
    base = {"messages": CHAT, "max_tokens": NUM_TOKENS, "temperature": 0}
    found = clients.ask("chat", way, **(base | fields))
    assert found.texts == [greedy(CHAT_PROMPT)]
    assert found.reasons == ["length"]
    assert found.usage.prompt_tokens == len(CHAT_PROMPT)
    assert found.usage.completion_tokens == NUM_TOKENS
    assert found.usage.total_tokens == len(CHAT_PROMPT) + NUM_TOKENS


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fields", [r[1] for r in TEXT_ROWS], ids=[r[0] for r in TEXT_ROWS])
def test_completion(clients: Clients, fields: dict[str, Any], way: str) -> None:
    """The answer is the same as without the field."""
    base = {"prompt": TEXT, "max_tokens": NUM_TOKENS, "temperature": 0}
    found = clients.ask("completions", way, **(base | fields))
    assert found.texts == [greedy(TEXT_PROMPT)]
    assert found.reasons == ["length"]
    assert found.usage.prompt_tokens == len(TEXT_PROMPT)
    assert found.usage.completion_tokens == NUM_TOKENS


LONG = greedy(TEXT_PROMPT, 64, ignore_eos=True)
# (id, fields of a completion, texts, reasons); the whole answer is LONG.
MADE: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("max_tokens.1", {"max_tokens": 1}, [LONG[:1]], ["length"]),
    ("max_tokens.default", {"max_tokens": None}, [LONG[:16]], ["length"]),
    ("stop.one_character", {"stop": LONG[9]}, [LONG[: LONG.index(LONG[9])]], ["stop"]),
    ("stop.over_tokens", {"stop": LONG[10:17]}, [LONG[:10]], ["stop"]),
    ("stop.at_once", {"stop": LONG[:2]}, [""], ["stop"]),
    ("stop.earliest_wins", {"stop": [LONG[20:24], LONG[8:12]]}, [LONG[:8]], ["stop"]),
    ("stop.prefix_that_fails", {"stop": LONG[5:9] + "\u00e9"}, [LONG], ["length"]),
    (
        "stop.included",
        {"stop": LONG[10:17], "include_stop_str_in_output": True},
        [LONG[:17]],
        ["stop"],
    ),
    ("stop_token_ids", {"stop_token_ids": [ord(LONG[7])]}, [LONG[: LONG.index(LONG[7])]], ["stop"]),
    ("echo", {"echo": True, "max_tokens": 4}, [TEXT + LONG[:4]], ["length"]),
    ("echo.prompt_alone", {"echo": True, "max_tokens": 0}, [TEXT], ["length"]),
    ("n.2", {"n": 2, "max_tokens": 8}, [LONG[:8]] * 2, ["length"] * 2),
    ("n.16", {"n": 16, "max_tokens": 2}, [LONG[:2]] * 16, ["length"] * 16),
    (
        "prompts.2",
        {"prompt": [TEXT, "other"], "max_tokens": 8},
        [LONG[:8], greedy(mock_model.encode("other"), 8)],
        ["length"] * 2,
    ),
    (
        "prompts.tokens",
        {"prompt": [TEXT_PROMPT, [1, 2, 3]], "max_tokens": 8},
        [LONG[:8], greedy([1, 2, 3], 8)],
        ["length"] * 2,
    ),
    (
        "prompts.2_choices_each",
        {"prompt": [TEXT, "other"], "n": 2, "max_tokens": 4},
        [LONG[:4]] * 2 + [greedy(mock_model.encode("other"), 4)] * 2,
        ["length"] * 4,
    ),
    (
        "truncate_prompt_tokens",
        {"truncate_prompt_tokens": 4, "max_tokens": 8},
        [greedy(TEXT_PROMPT[-4:], 8)],
        ["length"],
    ),
    (
        "prompt.unicode",
        {"prompt": "na\u00efve \u4f60\u597d \U0001f600", "max_tokens": 8},
        [greedy(mock_model.encode("na\u00efve \u4f60\u597d \U0001f600"), 8)],
        ["length"],
    ),
    (
        "seed.choices",
        {"n": 3, "temperature": 1, "seed": 5, "max_tokens": 9},
        [greedy(TEXT_PROMPT, 9, temperature=1, seed=5, choice=choice) for choice in range(3)],
        ["length"] * 3,
    ),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("fields", "texts", "reasons"), [row[1:] for row in MADE], ids=[row[0] for row in MADE]
)
def test_made(
    clients: Clients, fields: dict[str, Any], texts: list[str], reasons: list[str], way: str
) -> None:
    """The field makes of the answer what it says."""
    base: dict[str, Any] = {"prompt": TEXT, "max_tokens": 64, "temperature": 0, "ignore_eos": True}
    found = clients.ask("completions", way, **(base | fields))
    assert found.texts == texts
    assert found.reasons == reasons


# (id, messages, what the template makes of them)
MESSAGES: list[tuple[str, list[dict[str, Any]], list[dict[str, str]]]] = [
    ("system", [{"role": "system", "content": "be brief"}, *CHAT], []),
    (
        "developer_is_system",
        [{"role": "developer", "content": "be brief"}, *CHAT],
        [{"role": "system", "content": "be brief"}, *CHAT],
    ),
    ("turns", [*CHAT, {"role": "assistant", "content": "hi"}, *CHAT], []),
    (
        "assistant_without_content",
        [*CHAT, {"role": "assistant", "content": None}, *CHAT],
        [*CHAT, {"role": "assistant", "content": ""}, *CHAT],
    ),
    (
        "parts_are_joined",
        [{"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]}],
        [{"role": "user", "content": "a\nb"}],
    ),
    ("unicode", [{"role": "user", "content": "na\u00efve \u4f60\u597d \U0001f600"}], []),
    ("controls", [{"role": "user", "content": 'a\tb\n"c"\\d\u2028e'}], []),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("sent", "meant"), [row[1:] for row in MESSAGES], ids=[row[0] for row in MESSAGES]
)
def test_messages(
    clients: Clients, sent: list[dict[str, Any]], meant: list[dict[str, str]], way: str
) -> None:
    """The chat reaches the model as its template writes it."""
    prompt = mock_model.chat(meant or sent)
    found = clients.ask("chat", way, messages=sent, max_tokens=10, temperature=0)
    assert found.texts == [greedy(prompt, 10)]
    assert found.usage.prompt_tokens == len(prompt)
