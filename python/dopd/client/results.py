"""What callers of the client get: immutable values, free of protobuf.

All are `msgspec` structs: `msgspec.to_builtins(answer)` and `msgspec.json.encode(event)` work.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from dopd.client.options import ChatMessage

# `other` is a reason that a newer server knows and this client does not.
FinishReason: TypeAlias = Literal["stop", "length", "other"]
HealthStatus: TypeAlias = Literal["serving", "not_serving", "unknown"]


class Usage(msgspec.Struct, frozen=True):
    """Tokens that a request used.

    prompt_tokens: of the prompt.
    completion_tokens: of all choices together.
    cached_tokens: prompt tokens whose KV was reused.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class TokenLogprob(msgspec.Struct, frozen=True):
    """One token and the natural logarithm of its probability.

    token_bytes: not always valid UTF-8 on their own.
    """

    token_id: int
    token_bytes: bytes
    logprob: float


class TokenLogprobs(msgspec.Struct, frozen=True):
    """One position of an answer: the token that was drawn, and the likeliest ones, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


class Choice(msgspec.Struct, frozen=True):
    """One complete answer to the prompt.

    index: 0 to n - 1.
    finish_reason: `stop` (end token, stop token or stop string) or `length`.
    logprobs: one per token id; None unless `top_logprobs` was given.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...] | None


class Answer(msgspec.Struct, frozen=True):
    """Everything that one request brought.

    request_id: the server's id, also in its logs.
    model: name of the model that answered.
    choices: in order of their index; `n` of them.
    """

    request_id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first choice ended."""
        return self.choices[0].finish_reason

    @property
    def message(self) -> ChatMessage:
        """The first choice as a chat message, to be appended before the next question."""
        return {"role": "assistant", "content": self.text}


class Started(msgspec.Struct, frozen=True, tag_field="type", tag="started"):
    """First event of a stream, handed out together with the first token."""

    request_id: str
    model: str
    prompt_tokens: int


class Delta(msgspec.Struct, frozen=True, tag_field="type", tag="delta"):
    """More of one choice.

    text: whole characters; empty while a character or a possible stop string is incomplete.
    token_ids: since the last delta of this choice.
    logprobs: one per token id if `top_logprobs` was given, else empty.
    """

    choice: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]


class Finished(msgspec.Struct, frozen=True, tag_field="type", tag="finished"):
    """A choice is complete."""

    choice: int
    reason: FinishReason


class Done(msgspec.Struct, frozen=True, tag_field="type", tag="done"):
    """Last event of a stream: all choices are complete."""

    usage: Usage


Event: TypeAlias = Started | Delta | Finished | Done


class Tokens(msgspec.Struct, frozen=True):
    """A text or a chat as the model reads it.

    max_model_len: longest prompt plus answer, in tokens.
    """

    token_ids: tuple[int, ...]
    max_model_len: int


class Model(msgspec.Struct, frozen=True):
    """A model that the server serves.

    created_s: when it was loaded, in seconds since 1970.
    max_model_len: longest prompt plus answer, in tokens.
    ready: whether workers are attached that can serve it now.
    """

    name: str
    created_s: int
    owned_by: str
    max_model_len: int
    ready: bool
