"""What an Open is measured against, before it gets a page. Called by the seat table."""

from __future__ import annotations

from dataclasses import dataclass

from dopd.kv.layout import pages_for
from dopd.sched.chain import LINK_BYTES, SALT_BYTES
from dopd.types import Compute, Grant, Import, Open


@dataclass(frozen=True, slots=True)
class SeatLimits:
    """What an Open is measured against, and how our grants look."""

    ticket: Grant
    max_seats: int
    page_size: int
    page_bytes: int
    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]


def open_error(event: Open, limits: SeatLimits) -> str | None:
    """Why an Open can be computed nowhere, or None: too few pages to begin with, or poison."""
    kind = event.kind
    # What is known is computed at once, or arrives but for its last token.
    known = len(kind.answer) if isinstance(kind, Compute) else max(kind.have - 1, 0)
    needed = pages_for(event.prompt_tokens + known, limits.page_size)
    if event.pages < max(needed, 1):
        return f"{event.pages} pages for {event.prompt_tokens + known} tokens, which need {needed}"
    if event.prompt_tokens < 1 or event.limits.max_tokens < 1:
        return "prompt and answer need at least one token each"
    is_asked_for = isinstance(kind, Compute) or event.adjustments.needs_prompt
    if is_asked_for and len(kind.prompt) != event.prompt_tokens:
        return f"{len(kind.prompt)} prompt tokens sent, {event.prompt_tokens} announced"
    if (broken := prefix_error(event, limits)) is not None:
        return broken
    largest = max(
        max(kind.prompt, default=0),
        max((token for token, _ in event.adjustments.bias), default=0),
    )
    if isinstance(kind, Compute):
        largest = max(largest, max(kind.answer, default=0))
    if largest >= limits.vocab_size:
        return f"token id {largest}, the vocabulary has {limits.vocab_size}"
    if not isinstance(kind, Compute):
        return None
    if len(kind.answer) >= event.limits.max_tokens:
        return f"{len(kind.answer)} answer tokens are made, of {event.limits.max_tokens}"
    if len(kind.prompt) + len(kind.answer) >= limits.max_model_len:
        made = len(kind.prompt) + len(kind.answer)
        return f"{made} tokens are made, the model takes {limits.max_model_len}"
    return None


def prefix_error(event: Open, limits: SeatLimits) -> str | None:
    """Why what an Open says of its hash chain is not right, or None."""
    if len(event.prefix_salt) not in (0, SALT_BYTES):
        return f"a prefix salt of {len(event.prefix_salt)} bytes, not {SALT_BYTES}"
    if not isinstance(event.kind, Import):
        return None
    prefix, tail = event.kind.prefix, event.kind.tail
    num_links, rest = divmod(len(prefix), LINK_BYTES)
    known = num_links * limits.page_size + len(tail)
    if rest or known > event.prompt_tokens:
        return f"{len(prefix)} bytes of links and {len(tail)} tokens for {event.prompt_tokens}"
    if max(tail, default=0) >= limits.vocab_size:
        return f"token id {max(tail)}, the vocabulary has {limits.vocab_size}"
    return None
