"""How long a step will take: measured at load or before, corrected by every step since.

The form is that of the router's cost model (`router/core/src/cost`), which gets what was measured
in the hello: what a prompt costs is predicted there with the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from dopd.engine.timings import Timings
from dopd.types import Row, StepWork

# Share of the newest step in the running correction: half of a change is taken up in 5 steps.
CORRECTION_SHARE = 0.13
# One outlier (a page fault, a neighbour's burst) moves the correction by no more than this
# factor's share.
MAX_RATIO = 4.0
# The router's belief until a worker has measured its own.
MIXED_PENALTY_RATIO = 0.2


def work_of(rows: Sequence[Row]) -> StepWork:
    """Add up a step's rows."""
    contexts = [row.start + 1 for row in rows if row.pos and len(row.tokens) == 1]
    prompts = [(len(row.tokens), row.start) for row in rows if not row.pos or len(row.tokens) > 1]
    decode = StepWork(0, 0, len(contexts), sum(contexts))
    return decode.with_prompts(prompts, sum(new for new, _ in prompts))


class StepCost:
    """Predicts by a calibration: that of the warm-up, or one that was measured at leisure.

    What prompts cost and what decoding costs are corrected apart: a prefill is bound by arithmetic,
    decoding by memory. A step of both costs what its prompts cost and what decoding adds; what it
    costs more is the scheduler's to learn.
    """

    def __init__(self, timings: Timings) -> None:
        self.timings = timings
        self._prefill_ratio = self._decode_ratio = 1.0

    @classmethod
    def fit(
        cls,
        name: str,
        *,
        one: float,
        many: float,
        many_tokens: int,
        long: float,
        deep: float,
        context: int,
    ) -> StepCost:
        """From four measured steps in us: one token, many_tokens, and the same after `context`.

        Nobody measured a hand-off: it has no time, as if nothing were told.
        """
        per_token = max(0.0, many - one) / max(1, many_tokens - 1)
        pairs = max(1, many_tokens * context)
        timings = Timings(
            name,
            weights_us=max(one - per_token, 1.0),
            memory_us_per_token=per_token,
            attention_us_per_pair=max(0.0, deep - many) / pairs,
            context_us_per_token=max(0.0, long - one) / max(1, context),
            mixed_penalty_ratio=MIXED_PENALTY_RATIO,
        )
        return cls(timings)

    def expect_us(self, work: StepWork) -> int:
        """Microseconds that a step with this work takes, without what a mixed one costs more."""
        if not (work.prefill_tokens or work.decode_seqs):
            return 0
        prefill_us = self.timings.plain_us(StepWork(work.prefill_tokens, work.prefill_pairs))
        decode_us = self.timings.plain_us(work) - prefill_us
        return max(1, round(prefill_us * self._prefill_ratio + decode_us * self._decode_ratio))

    def learn(self, work: StepWork, took_us: float) -> None:
        """Take up what a step took that did one of the two."""
        if work.is_mixed:
            return
        ratio = min(max(took_us / self.expect_us(work), 1 / MAX_RATIO), MAX_RATIO)
        correction = 1 + CORRECTION_SHARE * (ratio - 1)
        if work.prefill_tokens:
            self._prefill_ratio *= correction
        else:
            self._decode_ratio *= correction
