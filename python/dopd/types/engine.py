"""Between the step loop and an engine: rows in, results out."""

from __future__ import annotations

from dataclasses import dataclass, field

from dopd.types.request import LogitAdjustments, Logprobs, SamplingParams


@dataclass(slots=True)
class Sampled:
    """The token that a step drew for one row. Not frozen: that would triple its cost."""

    token: int
    logprobs: Logprobs | None = None


@dataclass(slots=True)
class Scored:
    """The result of a row with targets: their log probabilities, and what was drawn, if anything.

    prompt: one entry per target of the row.
    """

    prompt: list[Logprobs] = field(repr=False)
    sampled: Sampled | None


Result = Sampled | Scored | Exception | None
"""Of one row: see `dopd.engine.base.Engine.step`."""


@dataclass(slots=True, eq=False)
class History:
    """What the adjustments of one sequence look at.

    prompt: empty unless `adjustments.needs_prompt`. answer: grows token by token, never shrinks.
    cache: what an engine derived from them; it ends with the sequence.
    """

    adjustments: LogitAdjustments
    prompt: list[int] = field(repr=False)
    answer: list[int] = field(repr=False)
    cache: object = field(default=None, repr=False)


@dataclass(slots=True)
class Row:
    """One sequence's part in one engine step. Reused step by step: an engine keeps no row.

    tokens: ids to compute now: a chunk of the prompt, or the last answer token. Their KV goes to
        positions start .. start + len(tokens) of the sequence.
    pages: the sequence's pages in order; page i holds positions i * page_size and on.
    sampling: None if no token is drawn (a chunk that is not the last one).
    pos: answer tokens made so far; the counter of the draw.
    forbidden: ids that must not be drawn now (ends of the answer before `min_tokens`).
    history: what the logits are adjusted by before the draw; its answer has `pos` tokens.
    targets: the prompt's tokens at positions start + 1 and on, if their log probabilities and those
        of `num_top` alternatives at each are asked for. At most as many as `tokens`.
    """

    slot: int
    tokens: list[int] = field(repr=False)
    start: int
    pages: list[int] = field(repr=False)
    sampling: SamplingParams | None
    pos: int
    forbidden: frozenset[int] = frozenset()
    history: History | None = None
    targets: list[int] | None = field(default=None, repr=False)
    num_top: int = 0
