"""Numbers and order of a stream's messages, and the answer that they make."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dopd
from dopd._gen.dopd.v1 import inference_pb2 as pb
from dopd._gen.dopd.v1 import types_pb2
from dopd.client.events import Collector, EventReader
from tests.support import fake_inference as fake

STARTED = ("started", {"request_id": "r", "model": "m", "prompt_tokens": 1})
FINISHED = ("finished", {"reason": types_pb2.FINISH_REASON_LENGTH})
DONE = ("done", {"usage": {"prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": 1}})


def delta(text: str, choice: int = 0) -> tuple[str, dict[str, Any]]:
    return ("delta", {"choice": choice, "text": text, "token_ids": [len(text)]})


def read(messages: list[Any], choices: int = 1) -> list[dopd.Event]:
    reader = EventReader(choices)
    events = [reader.read(message) for message in messages]
    reader.end()
    return [event for event in events if event is not None]


def answer(messages: list[Any], choices: int = 1, *, has_logprobs: bool = False) -> dopd.Answer:
    collector = Collector(has_logprobs=has_logprobs)
    for event in read(messages, choices):
        collector.add(event)
    return collector.answer()


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([delta("a")], "out of order"),
        ([STARTED, STARTED], "out of order"),
        ([STARTED, delta("a", 1)], "choice 1"),
        ([STARTED, FINISHED, delta("a")], "choice 0"),
        ([STARTED, FINISHED, FINISHED], "choice 0"),
        ([STARTED, DONE], "never finished"),
        ([STARTED, FINISHED, DONE, delta("a")], "out of order"),
        ([STARTED, delta("a")], "before its last one"),
        ([STARTED, FINISHED], "before its last one"),
        ([], "after 0 events"),
    ],
)
def test_what_is_no_whole_answer_is_refused(events: list[Any], words: str) -> None:
    with pytest.raises(dopd.BrokenStreamError, match=words):
        read(fake.messages(*events))


@pytest.mark.parametrize("gone", [0, 1, 2, 3, 4])
def test_a_missing_event_is_noticed(gone: int) -> None:
    messages = fake.whole()
    del messages[gone]
    with pytest.raises(dopd.BrokenStreamError):
        read(messages)


@given(st.permutations(range(6)))
def test_only_one_order_is_accepted(order: list[int]) -> None:
    messages = fake.whole(["a", "b", "c"])
    shuffled = [messages[index] for index in order]
    if order == sorted(order):
        assert len(read(shuffled)) == 6
    else:
        with pytest.raises(dopd.BrokenStreamError):
            read(shuffled)


def test_events_of_a_newer_server_are_passed_over() -> None:
    unknown = pb.GenerateResponse.FromString(b"\x08\x01\xa2\x06\x03new")
    first, *rest = fake.messages(STARTED, FINISHED, DONE)
    for message in rest:
        message.sequence_number += 1
    assert len(read([first, unknown, *rest])) == 3


def test_a_finish_reason_of_a_newer_server_is_other() -> None:
    messages = fake.messages(STARTED, ("finished", {"reason": 77}), DONE)
    assert answer(messages).finish_reason == "other"


def test_choices_are_put_together_whatever_their_interleaving() -> None:
    found = answer(
        fake.messages(
            STARTED,
            delta("b1", 1),
            delta("a1", 0),
            ("finished", {"choice": 1, "reason": types_pb2.FINISH_REASON_STOP}),
            delta("a22", 0),
            FINISHED,
            DONE,
        ),
        choices=2,
    )
    assert [choice.text for choice in found.choices] == ["a1a22", "b1"]
    assert [choice.token_ids for choice in found.choices] == [(2, 3), (2,)]
    assert [choice.finish_reason for choice in found.choices] == ["length", "stop"]
    assert found.usage == dopd.Usage(1, 2, 1)
    assert (found.text, found.finish_reason, found.request_id) == ("a1a22", "length", "r")
    assert found.message == {"role": "assistant", "content": "a1a22"}


def test_log_probabilities_come_with_their_tokens() -> None:
    top = {"token_id": 4, "token_bytes": b"\xc3", "logprob": -0.5}
    entry = {"chosen": top, "top": [top]}
    with_logprobs = ("delta", {"token_ids": [4], "logprobs": [entry]})
    messages = fake.messages(STARTED, with_logprobs, FINISHED, DONE)
    token = dopd.TokenLogprob(4, b"\xc3", -0.5)
    assert answer(messages, has_logprobs=True).choices[0].logprobs == (
        dopd.TokenLogprobs(token, (token,)),
    )
    assert answer(fake.whole()).choices[0].logprobs is None


def test_events_are_immutable_and_become_json() -> None:
    started, first, *_, finished, done = read(fake.whole())
    with pytest.raises(AttributeError):
        first.text = "x"  # type: ignore[union-attr, misc]
    assert msgspec.json.decode(msgspec.json.encode(first)) == {
        "type": "delta",
        "choice": 0,
        "text": "Hel",
        "token_ids": [3],
        "logprobs": [],
    }
    again = msgspec.json.decode(msgspec.json.encode([started, first, finished, done]))
    assert msgspec.convert(again, list[dopd.Event]) == [started, first, finished, done]
