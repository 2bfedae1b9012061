"""What is refused: status, code and the name of the field, as the client's own exceptions."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from dopd.errors import BY_CODE
from tests.support.conformance import CHAT, WAYS, Clients

BAD = "invalid_value"
NOT_HERE = "unsupported_value"
LONG = "context_length_exceeded"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
JSON = {"type": "json_object"}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}


def user(content: Any) -> list[dict[str, Any]]:
    """A chat of one message."""
    return [{"role": "user", "content": content}]


# (id, fields, code, field at fault), on both routes.
BOTH: list[tuple[str, dict[str, Any], str, str]] = [
    ("temperature.negative", {"temperature": -0.1}, BAD, "temperature"),
    ("temperature.high", {"temperature": 2.1}, BAD, "temperature"),
    ("temperature.text", {"temperature": "hot"}, BAD, "temperature"),
    ("temperature.list", {"temperature": [1]}, BAD, "temperature"),
    ("temperature.bool", {"temperature": True}, BAD, "temperature"),
    ("top_p.0", {"top_p": 0}, BAD, "top_p"),
    ("top_p.high", {"top_p": 1.01}, BAD, "top_p"),
    ("top_p.negative", {"top_p": -0.5}, BAD, "top_p"),
    ("top_k.-2", {"top_k": -2}, BAD, "top_k"),
    ("top_k.fraction", {"top_k": 1.5}, BAD, "top_k"),
    ("top_k.text", {"top_k": "all"}, BAD, "top_k"),
    ("min_p.negative", {"min_p": -0.1}, BAD, "min_p"),
    ("min_p.high", {"min_p": 1.1}, BAD, "min_p"),
    ("presence_penalty.high", {"presence_penalty": 2.1}, BAD, "presence_penalty"),
    ("presence_penalty.low", {"presence_penalty": -2.1}, BAD, "presence_penalty"),
    ("frequency_penalty.high", {"frequency_penalty": 2.1}, BAD, "frequency_penalty"),
    ("frequency_penalty.low", {"frequency_penalty": -2.1}, BAD, "frequency_penalty"),
    ("repetition_penalty.0", {"repetition_penalty": 0}, BAD, "repetition_penalty"),
    ("repetition_penalty.negative", {"repetition_penalty": -1}, BAD, "repetition_penalty"),
    ("repetition_penalty.high", {"repetition_penalty": 2.5}, BAD, "repetition_penalty"),
    ("logit_bias.high", {"logit_bias": {"65": 101}}, BAD, "logit_bias"),
    ("logit_bias.low", {"logit_bias": {"65": -101}}, BAD, "logit_bias"),
    ("logit_bias.key", {"logit_bias": {"a": 1}}, BAD, "logit_bias"),
    ("logit_bias.unknown_token", {"logit_bias": {"99999": 1}}, BAD, "logit_bias"),
    ("logit_bias.negative_token", {"logit_bias": {"-1": 1}}, BAD, "logit_bias"),
    ("logit_bias.twice", {"logit_bias": {"65": 1, "065": 2}}, BAD, "logit_bias"),
    ("logit_bias.text", {"logit_bias": {"65": "much"}}, BAD, "logit_bias"),
    ("logit_bias.list", {"logit_bias": [65]}, BAD, "logit_bias"),
    ("logit_bias.many", {"logit_bias": {str(n): 1 for n in range(1025)}}, BAD, "logit_bias"),
    ("seed.large", {"seed": 2**64}, BAD, "seed"),
    ("seed.fraction", {"seed": 0.5}, BAD, "seed"),
    ("n.0", {"n": 0}, BAD, "n"),
    ("n.negative", {"n": -1}, BAD, "n"),
    ("n.17", {"n": 17}, BAD, "n"),
    ("n.text", {"n": "two"}, BAD, "n"),
    ("max_tokens.negative", {"max_tokens": -1}, BAD, "max_tokens"),
    ("max_tokens.0", {"max_tokens": 0}, BAD, "max_tokens"),
    ("max_tokens.fraction", {"max_tokens": 1.5}, BAD, "max_tokens"),
    ("max_tokens.text", {"max_tokens": "four"}, BAD, "max_tokens"),
    ("min_tokens.negative", {"min_tokens": -1}, BAD, "min_tokens"),
    ("min_tokens.over_max", {"min_tokens": 9, "max_tokens": 8}, BAD, "min_tokens"),
    ("stop.17", {"stop": ["a"] * 17}, BAD, "stop"),
    ("stop.long", {"stop": "a" * 257}, BAD, "stop"),
    ("stop.long_in_bytes", {"stop": "\u00e9" * 129}, BAD, "stop"),
    ("stop.empty", {"stop": [""]}, BAD, "stop"),
    ("stop.number", {"stop": 5}, BAD, "stop"),
    ("stop_token_ids.65", {"stop_token_ids": [1] * 65}, BAD, "stop_token_ids"),
    ("stop_token_ids.unknown", {"stop_token_ids": [99999]}, BAD, "stop_token_ids"),
    ("stop_token_ids.negative", {"stop_token_ids": [-1]}, BAD, "stop_token_ids"),
    ("stop_token_ids.text", {"stop_token_ids": ["a"]}, BAD, "stop_token_ids"),
    ("ignore_eos.text", {"ignore_eos": "yes"}, BAD, "ignore_eos"),
    ("priority.text", {"priority": "high"}, BAD, "priority"),
    ("priority.large", {"priority": 2**40}, BAD, "priority"),
    ("slo_ttft_ms.zero", {"slo_ttft_ms": 0}, BAD, "slo_ttft_ms"),
    ("slo_tpot_ms.large", {"slo_tpot_ms": 86_400_001}, BAD, "slo_tpot_ms"),
    ("user.number", {"user": 5}, BAD, "user"),
    ("user.long", {"user": "u" * 513}, BAD, "user"),
    ("truncate_prompt_tokens.0", {"truncate_prompt_tokens": 0}, BAD, "truncate_prompt_tokens"),
    ("truncate_prompt_tokens.-2", {"truncate_prompt_tokens": -2}, BAD, "truncate_prompt_tokens"),
    ("prompt_logprobs.21", {"prompt_logprobs": 21}, BAD, "prompt_logprobs"),
    ("model.unknown", {"model": "gpt-9"}, "model_not_found", "model"),
    ("model.number", {"model": 5}, BAD, "model"),
    ("structured_outputs", {"structured_outputs": {"regex": "a"}}, NOT_HERE, "structured_outputs"),
    ("guided_json", {"guided_json": {"type": "object"}}, NOT_HERE, "guided_json"),
    ("guided_regex", {"guided_regex": "a+"}, NOT_HERE, "guided_regex"),
    ("guided_choice", {"guided_choice": ["a"]}, NOT_HERE, "guided_choice"),
    ("guided_grammar", {"guided_grammar": "root"}, NOT_HERE, "guided_grammar"),
    ("use_beam_search", {"use_beam_search": True}, NOT_HERE, "use_beam_search"),
    ("length_penalty", {"length_penalty": 2}, NOT_HERE, "length_penalty"),
    ("allowed_token_ids", {"allowed_token_ids": [1]}, NOT_HERE, "allowed_token_ids"),
    ("bad_words", {"bad_words": ["a"]}, NOT_HERE, "bad_words"),
    ("logits_processors", {"logits_processors": ["x"]}, NOT_HERE, "logits_processors"),
    ("kv_transfer_params", {"kv_transfer_params": {"a": 1}}, NOT_HERE, "kv_transfer_params"),
    ("cache_salt.long", {"cache_salt": "s" * 257}, BAD, "cache_salt"),
    ("cache_salt.number", {"cache_salt": 5}, BAD, "cache_salt"),
]
CHAT_ONLY: list[tuple[str, dict[str, Any], str, str]] = [
    ("messages.none", {"messages": []}, BAD, "messages"),
    ("messages.text", {"messages": "hello"}, BAD, "messages"),
    ("messages.of_text", {"messages": ["hello"]}, BAD, "messages[0]"),
    ("messages.null", {"messages": [None]}, BAD, "messages[0]"),
    ("messages.no_role", {"messages": [{"content": "a"}]}, BAD, "messages[0]"),
    ("messages.role", {"messages": [{"role": "king", "content": "a"}]}, BAD, "messages[0].role"),
    ("messages.no_content", {"messages": [{"role": "user"}]}, BAD, "messages[0].content"),
    ("messages.content", {"messages": user(5)}, BAD, "messages[0].content"),
    ("messages.second", {"messages": [*CHAT, *user(5)]}, BAD, "messages[1].content"),
    ("messages.image", {"messages": user([IMAGE])}, NOT_HERE, "messages[0].content[0]"),
    ("messages.audio", {"messages": user([AUDIO])}, NOT_HERE, "messages[0].content[0]"),
    (
        "messages.function",
        {"messages": [*CHAT, {"role": "function", "name": "x", "content": "5"}]},
        NOT_HERE,
        "messages[1].role",
    ),
    ("max_completion_tokens.0", {"max_completion_tokens": 0}, BAD, "max_completion_tokens"),
    ("max_completion_tokens.long", {"max_completion_tokens": 140_000}, LONG, "messages"),
    ("logprobs.number", {"logprobs": 3}, BAD, "logprobs"),
    ("top_logprobs.21", {"logprobs": True, "top_logprobs": 21}, BAD, "top_logprobs"),
    ("top_logprobs.negative", {"logprobs": True, "top_logprobs": -1}, BAD, "top_logprobs"),
    ("top_logprobs.alone", {"top_logprobs": 2}, BAD, "top_logprobs"),
    ("tools", {"tools": [TOOL]}, NOT_HERE, "tools"),
    ("tools.auto", {"tools": [TOOL], "tool_choice": "auto"}, NOT_HERE, "tools"),
    ("tool_choice.required", {"tool_choice": "required"}, NOT_HERE, "tool_choice"),
    ("functions", {"functions": [{"name": "f"}]}, NOT_HERE, "functions"),
    ("response_format.json", {"response_format": JSON}, NOT_HERE, "response_format"),
    ("response_format.schema", {"response_format": SCHEMA}, NOT_HERE, "response_format"),
    ("modalities.audio", {"modalities": ["text", "audio"]}, NOT_HERE, "modalities"),
    ("reasoning_effort", {"reasoning_effort": "high"}, NOT_HERE, "reasoning_effort"),
    ("verbosity", {"verbosity": "low"}, NOT_HERE, "verbosity"),
    ("chat_template", {"chat_template": "{{ messages }}"}, NOT_HERE, "chat_template"),
    ("documents", {"documents": [{"text": "a"}]}, NOT_HERE, "documents"),
    ("continue_final", {"continue_final_message": True}, NOT_HERE, "continue_final_message"),
    ("metadata.list", {"metadata": ["a"]}, BAD, "metadata"),
    ("metadata.number", {"metadata": {"a": 5}}, BAD, "metadata"),
    ("metadata.many", {"metadata": {str(n): "" for n in range(17)}}, BAD, "metadata"),
]
TEXT_ONLY: list[tuple[str, dict[str, Any], str, str]] = [
    ("prompt.none", {"prompt": []}, BAD, "prompt"),
    ("prompt.null", {"prompt": None}, BAD, "prompt"),
    ("prompt.number", {"prompt": 5}, BAD, "prompt"),
    ("prompt.object", {"prompt": {"text": "a"}}, BAD, "prompt"),
    ("prompt.unknown_token", {"prompt": [1, 99999]}, BAD, "prompt"),
    ("prompt.negative_token", {"prompt": [-1]}, BAD, "prompt"),
    ("prompt.mixed", {"prompt": ["a", 5]}, BAD, "prompt"),
    ("prompt.empty_list_in_list", {"prompt": [[1], []]}, BAD, "prompt"),
    ("prompt.65", {"prompt": ["a"] * 65}, BAD, "prompt"),
    ("prompt.long", {"prompt": [5] * 140_000}, LONG, "prompt"),
    ("max_tokens.long", {"max_tokens": 140_000}, LONG, "prompt"),
    ("max_tokens.context", {"prompt": [5] * 8, "max_tokens": 131_065}, LONG, "prompt"),
    ("logprobs.21", {"logprobs": 21}, BAD, "logprobs"),
    ("logprobs.negative", {"logprobs": -1}, BAD, "logprobs"),
    ("logprobs.bool", {"logprobs": True}, BAD, "logprobs"),
    ("echo.text", {"echo": "yes"}, BAD, "echo"),
    ("best_of.below_n", {"n": 2, "best_of": 1}, BAD, "best_of"),
    ("best_of.17", {"best_of": 17}, BAD, "best_of"),
    ("suffix", {"suffix": "the end"}, NOT_HERE, "suffix"),
]

BOTH_CHAT, BOTH_TEXT = [*BOTH, *CHAT_ONLY], [*BOTH, *TEXT_ONLY]
STATUS: dict[int, type[openai.APIStatusError]] = {
    400: openai.BadRequestError,
    404: openai.NotFoundError,
}


def assert_refused(
    clients: Clients, route: str, way: str, fields: dict[str, Any], code: str, field: str
) -> None:
    """The client's exception has status, type, code and field; the message is fit to be shown."""
    kind = BY_CODE[code]
    with pytest.raises(STATUS[kind.http]) as caught:
        clients.ask(route, way, **fields)
    error = caught.value
    assert (error.code, error.type, error.param) == (code, kind.kind, field), error.body
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}
    shown = error.body["message"]
    assert shown[0].islower() or not shown[0].isalpha(), shown
    assert not shown.endswith("."), shown
    assert error.response.headers["x-should-retry"] == "false"
    assert error.request_id


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("fields", "code", "field"), [row[1:] for row in BOTH_CHAT], ids=[row[0] for row in BOTH_CHAT]
)
def test_refused_chat(
    clients: Clients, fields: dict[str, Any], code: str, field: str, way: str
) -> None:
    """Of a chat."""
    base = {"messages": CHAT, "max_tokens": 4}
    assert_refused(clients, "chat", way, base | fields, code, field)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("fields", "code", "field"), [row[1:] for row in BOTH_TEXT], ids=[row[0] for row in BOTH_TEXT]
)
def test_refused_completion(
    clients: Clients, fields: dict[str, Any], code: str, field: str, way: str
) -> None:
    """Of a completion."""
    base = {"prompt": "hello", "max_tokens": 4}
    assert_refused(clients, "completions", way, base | fields, code, field)


@pytest.mark.parametrize("way", ["stream", "async-stream"])
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"n": 1, "best_of": 2}, "best_of"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"stream_options": 5}, "stream_options"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options"),
    ],
    ids=["best_of", "prompt_logprobs", "stream_options", "include_usage"],
)
def test_refused_stream(clients: Clients, fields: dict[str, Any], field: str, way: str) -> None:
    """What cannot be streamed."""
    base = {"prompt": "hello", "max_tokens": 4}
    assert_refused(clients, "completions", way, base | fields, BAD, field)


@pytest.mark.parametrize("route", ["chat", "completions"])
def test_stream_options_without_stream(clients: Clients, route: str) -> None:
    """As OpenAI refuses them."""
    base: dict[str, Any] = {"messages": CHAT} if route == "chat" else {"prompt": "hello"}
    fields = base | {"stream_options": {"include_usage": True}}
    assert_refused(clients, route, "whole", fields, BAD, "stream_options")
