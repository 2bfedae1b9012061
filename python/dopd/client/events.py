"""From the messages of a stream to events, and from events to the complete answer.

Pure: no socket, no clock. `AnswerStream` and `AsyncAnswerStream` feed it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from dopd._gen.dopd.v1 import inference_pb2 as pb
from dopd._gen.dopd.v1 import types_pb2
from dopd.client.errors import BrokenStreamError
from dopd.client.results import (
    Answer,
    Choice,
    Delta,
    Done,
    Event,
    Finished,
    FinishReason,
    Started,
    TokenLogprob,
    TokenLogprobs,
    Usage,
)

FINISH_REASONS: dict[int, FinishReason] = {
    types_pb2.FINISH_REASON_STOP: "stop",
    types_pb2.FINISH_REASON_LENGTH: "length",
}


class EventReader:
    """Checks number and order of the messages of one stream, and turns them into events.

    choices: how many the request asked for.
    """

    def __init__(self, choices: int) -> None:
        self._next_number = 0
        self._choices = choices
        self._open: set[int] = set()
        self.started: Started | None = None
        self.is_done: bool = False

    def read(self, message: pb.GenerateResponse | pb.ChatResponse) -> Event | None:
        """The event of `message`; None if it is of a kind that only newer clients know."""
        if message.sequence_number != self._next_number:
            raise self._broken(
                f"event {message.sequence_number} came where {self._next_number} was due"
            )
        self._next_number += 1
        kind = message.WhichOneof("event")
        if self.is_done or (kind == "started") == (self.started is not None):
            raise self._broken(f"event {message.sequence_number} is {kind}, out of order")
        match kind:
            case "started":
                return self._start(message.started)
            case "delta":
                self._check_open(message.delta.choice)
                return _delta(message.delta)
            case "finished":
                self._check_open(message.finished.choice)
                self._open.discard(message.finished.choice)
                reason = FINISH_REASONS.get(message.finished.reason, "other")
                return Finished(message.finished.choice, reason)
            case "done":
                if self._open:
                    raise self._broken(f"choices {sorted(self._open)} never finished")
                self.is_done = True
                return Done(_usage(message.done.usage))
            case None:
                return None

    def end(self) -> None:
        """The stream ended well; raises unless the answer is complete."""
        if not self.is_done:
            raise self._broken(f"it ended after {self._next_number} events, before its last one")

    def _start(self, started: pb.Started) -> Started:
        # Not before: only now the server has accepted the number.
        self._open = set(range(self._choices))
        self.started = Started(started.request_id, started.model, started.prompt_tokens)
        return self.started

    def _check_open(self, choice: int) -> None:
        if choice not in self._open:
            raise self._broken(f"choice {choice} goes on after its end, or was never asked for")

    def _broken(self, what: str) -> BrokenStreamError:
        request_id = self.started.request_id if self.started else None
        return BrokenStreamError(f"the answer's stream is broken: {what}", request_id=request_id)


@dataclass
class Parts:
    """What has come of one choice."""

    texts: list[str] = field(default_factory=list[str])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    reason: FinishReason = "other"


class Collector:
    """Gathers the events of one stream."""

    def __init__(self, *, has_logprobs: bool) -> None:
        self._started: Started | None = None
        self._usage: Usage | None = None
        self._parts: defaultdict[int, Parts] = defaultdict(Parts)
        self._has_logprobs = has_logprobs

    def add(self, event: Event) -> None:
        """One event of an `EventReader`, in order."""
        match event:
            case Started():
                self._started = event
            case Delta(choice, text, token_ids, logprobs):
                parts = self._parts[choice]
                parts.texts.append(text)
                parts.token_ids.extend(token_ids)
                parts.logprobs.extend(logprobs)
            case Finished(choice, reason):
                self._parts[choice].reason = reason
            case Done(usage):
                self._usage = usage

    def answer(self) -> Answer:
        """Everything; only after `Done`."""
        if self._started is None or self._usage is None:
            raise BrokenStreamError("the answer is not complete")
        choices = tuple(self._choice(*entry) for entry in sorted(self._parts.items()))
        return Answer(self._started.request_id, self._started.model, choices, self._usage)

    def _choice(self, index: int, parts: Parts) -> Choice:
        return Choice(
            index=index,
            text="".join(parts.texts),
            token_ids=tuple(parts.token_ids),
            finish_reason=parts.reason,
            logprobs=tuple(parts.logprobs) if self._has_logprobs else None,
        )


def _delta(delta: pb.Delta) -> Delta:
    return Delta(
        delta.choice,
        delta.text,
        tuple(delta.token_ids),
        _all_logprobs(delta.logprobs) if delta.logprobs else (),
    )


def _all_logprobs(entries: Sequence[pb.TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
    return tuple(
        TokenLogprobs(_logprob(entry.chosen), tuple(map(_logprob, entry.top))) for entry in entries
    )


def _logprob(entry: pb.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(entry.token_id, entry.token_bytes, entry.logprob)


def _usage(usage: types_pb2.Usage) -> Usage:
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
