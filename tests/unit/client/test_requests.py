"""From parameters to the messages on the wire."""

from __future__ import annotations

import typing
from typing import Any

import pytest

import dopd
from dopd._gen.dopd.v1 import inference_pb2 as pb
from dopd.client import requests

FULL: dopd.AnswerOptions = {
    "max_tokens": 7,
    "min_tokens": 1,
    "n": 2,
    "temperature": 0.5,
    "top_p": 0.25,
    "top_k": 3,
    "min_p": 0.125,
    "seed": 2**64 - 1,
    "presence_penalty": -1.5,
    "frequency_penalty": 2,
    "repetition_penalty": 1.25,
    "logit_bias": {5: -100, 6: 0.5},
    "stop": ["a", "b"],
    "stop_token_ids": [1, 2],
    "ignore_eos": True,
    "top_logprobs": 0,
    "priority": -3,
    "slo_ttft_ms": 500,
    "slo_tpot_ms": 30,
    "cache_salt": "pepper",
}


def test_every_option_arrives() -> None:
    assert set(FULL) == set(dopd.AnswerOptions.__annotations__)
    sampling = pb.Sampling(
        temperature=0.5,
        top_p=0.25,
        top_k=3,
        min_p=0.125,
        seed=2**64 - 1,
        presence_penalty=-1.5,
        frequency_penalty=2,
        repetition_penalty=1.25,
        logit_bias={5: -100, 6: 0.5},
    )
    expected = pb.AnswerOptions(
        max_tokens=7,
        min_tokens=1,
        n=2,
        sampling=sampling,
        stop=["a", "b"],
        stop_token_ids=[1, 2],
        ignore_eos=True,
        top_logprobs=0,
        priority=-3,
        slo_ttft_ms=500,
        slo_tpot_ms=30,
        cache_salt="pepper",
    )
    assert requests.options(FULL) == expected


def test_every_field_of_the_proto_is_an_option() -> None:
    fields = [*pb.AnswerOptions.DESCRIPTOR.fields, *pb.Sampling.DESCRIPTOR.fields]
    assert {field.name for field in fields} - {"sampling"} == set(FULL)


def test_none_is_absent() -> None:
    nothing = dict.fromkeys(FULL)
    found = requests.options(typing.cast(dopd.AnswerOptions, nothing))
    assert found == pb.AnswerOptions()
    assert requests.options({}) == pb.AnswerOptions()


def test_zeros_are_not_absent() -> None:
    found = requests.options({"temperature": 0, "max_tokens": 0, "seed": 0, "priority": 0})
    assert found.sampling.HasField("temperature")
    assert found.sampling.HasField("seed")
    assert found.HasField("max_tokens")
    assert found.HasField("priority")


def test_prompts_and_messages_take_their_forms() -> None:
    assert requests.generate("x", None, {}).text == "x"
    by_ids = requests.generate([1, 2], "m", {})
    assert (list(by_ids.token_ids.ids), by_ids.model) == ([1, 2], "m")
    assert requests.generate(range(3), None, {}).token_ids.ids == [0, 1, 2]
    assert requests.generate([], None, {}).WhichOneof("prompt") == "token_ids"
    one = requests.chat("hi", None, {}).messages
    assert one == [pb.ChatMessage(role="user", content="hi")]
    two = requests.tokenize([{"role": "system", "content": "s"}], None)
    assert two.chat.messages == [pb.ChatMessage(role="system", content="s")]
    assert requests.tokenize("t", None).text == "t"
    assert list(requests.detokenize((4, 5), None).token_ids) == [4, 5]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"n": 2**40}, "n"),
        ({"stop": "\ud800"}, "stop"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias"),
        ({"stop_token_ids": [2**32]}, "stop_token_ids"),
    ],
)
def test_what_the_wire_cannot_carry_is_refused_by_name(options: Any, field: str) -> None:
    with pytest.raises(dopd.InvalidRequestError) as caught:
        requests.options(options)
    assert caught.value.field == field
    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"seed": "x"}, "seed is 'x'"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop": b"x"}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop_token_ids": "ab"}, "stop_token_ids"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"max_toks": 3}, "did you mean 'max_tokens'"),
        ({"stream": True}, "unknown option 'stream'"),
    ],
)
def test_a_wrong_type_is_a_type_error_with_its_name(options: Any, word: str) -> None:
    with pytest.raises(TypeError) as caught:
        requests.options(options)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    "prompt", [b"bytes", bytearray(b"x"), ["text"], [1.5], None, 7, {"role": "user"}]
)
def test_other_prompts_are_type_errors(prompt: Any) -> None:
    with pytest.raises(TypeError, match="prompt"):
        requests.generate(prompt, None, {})


@pytest.mark.parametrize(
    "messages", [[{"role": "user"}], [{"role": "u", "content": "c", "name": "n"}], [{}], ["hi"]]
)
def test_a_message_has_exactly_role_and_content(messages: Any) -> None:
    with pytest.raises(TypeError, match=r"messages\[0\]"):
        requests.chat(messages, None, {})


@pytest.mark.parametrize("message", [{"role": "user", "content": "x"}, None, 7])
def test_one_message_alone_is_no_list_of_them(message: Any) -> None:
    with pytest.raises(TypeError, match="list"):
        requests.chat(message, None, {})


def test_content_that_is_no_text_is_named() -> None:
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    with pytest.raises(TypeError, match=r"messages\[0\]\.content"):
        requests.chat(parts, None, {})
    with pytest.raises(dopd.InvalidRequestError, match="lone surrogate"):
        requests.chat("\udfff", None, {})
