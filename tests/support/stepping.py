"""Drives an engine as the step loop does: decode rows first, then chunks of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dopd.engine.base import Engine
from dopd.kv.layout import pages_for
from dopd.types import History, LogitAdjustments, Logprobs, Row, Sampled, SamplingParams, Scored

GREEDY = SamplingParams(temperature=0.0, top_logprobs=5)
AS_THEY_ARE = LogitAdjustments()
UNBOUNDED = 1 << 20


@dataclass
class Running:
    """One sequence on one engine: its prompt, its pages, and what was drawn so far."""

    prompt: list[int]
    pages: list[int]
    sampling: SamplingParams = GREEDY
    adjustments: LogitAdjustments = AS_THEY_ARE
    drawn: list[Sampled] = field(default_factory=list)
    computed: int = 0
    num_top: int | None = None
    scored: list[Logprobs] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """The answer so far."""
        return [sampled.token for sampled in self.drawn]

    @property
    def prompt_left(self) -> int:
        """Prompt tokens whose KV is not computed yet; none: it is decoding."""
        return max(0, len(self.prompt) - self.computed)

    def row(self, slot: int, count: int) -> Row:
        """The next `count` tokens of the prompt, or the last token of the answer."""
        tokens = self.prompt[self.computed : self.computed + count] or self.tokens[-1:]
        sampling = self.sampling if len(tokens) >= self.prompt_left else None
        history = None
        if self.adjustments:
            history = History(self.adjustments, self.prompt, self.tokens)
        targets = None
        if self.num_top is not None and self.prompt_left:
            first = self.computed + 1
            targets = self.prompt[first : first + len(tokens)]
        return Row(
            slot,
            tokens,
            self.computed,
            self.pages,
            sampling,
            len(self.drawn),
            history=history,
            targets=targets,
            num_top=self.num_top or 0,
        )


def start(
    engine: Engine,
    prompts: Sequence[list[int]],
    num_tokens: int,
    sampling: SamplingParams = GREEDY,
) -> list[Running]:
    """One sequence per prompt with room for num_tokens; pages descend and interleave."""
    page_size = engine.geometry.page_size
    counts = [pages_for(len(prompt) + num_tokens, page_size) for prompt in prompts]
    assert sum(counts) <= engine.pool.num_pages, "the pool is too small for this test"
    free = iter(range(sum(counts) - 1, -1, -1))
    pages: list[list[int]] = [[] for _ in prompts]
    for turn in range(max(counts)):
        for own, count in zip(pages, counts, strict=True):
            if turn < count:
                own.append(next(free))
    return [Running(prompt, own, sampling) for prompt, own in zip(prompts, pages, strict=True)]


def step(engine: Engine, running: Sequence[Running], budget: int = UNBOUNDED) -> None:
    """One step: every decoding sequence, and up to `budget` prompt tokens of the others."""
    rows, owners = [], []
    for slot, sequence in enumerate(sorted(running, key=lambda one: one.prompt_left > 0)):
        count = min(budget, sequence.prompt_left)
        if sequence.prompt_left and not count:
            continue
        budget -= count
        rows.append(sequence.row(slot, count))
        owners.append(sequence)
    for sequence, row, result in zip(owners, rows, engine.step(rows), strict=True):
        if isinstance(result, Exception):
            raise result
        sequence.computed += len(row.tokens)
        if isinstance(result, Scored):
            sequence.scored += result.prompt
            result = result.sampled
        if result is not None:
            sequence.drawn.append(result)


def run(
    engine: Engine, running: Sequence[Running], num_tokens: int, budget: int = UNBOUNDED
) -> list[list[int]]:
    """Step until every sequence has num_tokens; their tokens."""
    while waiting := [sequence for sequence in running if len(sequence.drawn) < num_tokens]:
        step(engine, waiting, budget)
    return [sequence.tokens for sequence in running]
