"""What callers of the client may ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypedDict


class ChatMessage(TypedDict):
    """One message of a chat; a plain dict does.

    role: what the model's template knows: `system`, `developer`, `user`, `assistant`, `tool`.
    """

    role: str
    content: str


# Text, tokenized by the server without a template, or token ids, used as they are.
Prompt: TypeAlias = str | Sequence[int]
# Messages in order, 1 to 2,048 of them; a text alone is one message of the user.
Chat: TypeAlias = str | Sequence[ChatMessage]


class AnswerOptions(TypedDict, total=False):
    """Options of `generate`, `chat` and their streams. Absent or None: the server's default.

    max_tokens: most tokens per choice. Default: what the model's context leaves.
    min_tokens: fewest tokens per choice before a stop may end it. Default 0.
    n: independent choices, 1 to 16. Default 1.
    temperature: 0 (always the likeliest token) to 2. Default 1.
    top_p: draw from the likeliest tokens that together have this probability; above 0, at most 1.
        Default 1.
    top_k: draw from this many of the likeliest tokens; 0 means all. Default 0.
    min_p: leave out tokens below this share of the likeliest one's probability, 0 to 1. Default 0.
    seed: 0 to 2^64 - 1; the same seed, prompt and options give the same answer. Default: random.
    presence_penalty: taken once from the logit of each token that the answer holds, -2 to 2.
        Default 0.
    frequency_penalty: taken for each time that the answer holds the token, -2 to 2. Default 0.
    repetition_penalty: divides positive and multiplies negative logits of tokens that prompt or
        answer hold; above 0, at most 2. Default 1.
    logit_bias: token id to what is added to its logit, -100 to 100; at most 1,024 entries.
    stop: one string or up to 16, of 1 to 256 bytes each, that end the answer; they are
        not part of it.
    stop_token_ids: up to 64 token ids that end the answer.
    ignore_eos: go on after the model's end token. Default False.
    top_logprobs: give log probabilities of each token and of this many alternatives, 0 to 20.
        Default: none.
    priority: lower goes first, -100 to 100. Default 0.
    slo_ttft_ms, slo_tpot_ms: targets for the time to the first token and per later token, in
        milliseconds, up to 86,400,000. Default: those of the key or server.
    cache_salt: share what was computed only with requests that have the same, at most 256 bytes.
    """

    max_tokens: int | None
    min_tokens: int | None
    n: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    top_logprobs: int | None
    priority: int | None
    slo_ttft_ms: int | None
    slo_tpot_ms: int | None
    cache_salt: str | None
