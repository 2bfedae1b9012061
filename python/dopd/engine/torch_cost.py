"""How long the next step will take: measured at load, corrected by every step since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dopd.types import Row

# Share of the newest step in the running correction: half of a change is taken up in 5 steps.
CORRECTION_SHARE = 0.13
# One outlier (a page fault, a neighbour's burst) moves the correction by no more than this
# factor's share.
MAX_RATIO = 4.0


@dataclass(frozen=True, slots=True)
class Work:
    """What a step computes: new tokens, and keys that all of them look at together."""

    tokens: int
    context: int
    has_prefill: bool

    @staticmethod
    def of(rows: Sequence[Row]) -> Work:
        """Add up a step's rows."""
        tokens = sum(len(row.tokens) for row in rows)
        context = sum(len(row.tokens) * (2 * row.start + len(row.tokens)) // 2 for row in rows)
        return Work(tokens, context, any(len(row.tokens) > 1 for row in rows))


class StepCost:
    """fixed + per_token * tokens + per_context * context, times a correction per kind of step."""

    def __init__(self, fixed_us: float, per_token_us: float, per_context_us: float) -> None:
        self._fixed_us = max(fixed_us, 1.0)
        self._per_token_us = max(per_token_us, 0.0)
        self._per_context_us = max(per_context_us, 0.0)
        # By Work.has_prefill: a prefill reads weights once for many tokens, a decode is bound by
        # memory.
        self._correction = {False: 1.0, True: 1.0}

    @classmethod
    def fit(cls, one: float, many: float, many_tokens: int, long: float, context: int) -> StepCost:
        """From three measured steps in us: one token, many_tokens, one token after `context`."""
        per_token = max(0.0, many - one) / max(1, many_tokens - 1)
        return cls(one - per_token, per_token, max(0.0, long - one) / max(1, context))

    def expect_us(self, work: Work) -> int:
        """Microseconds that a step with this work will take."""
        return max(1, round(self._model_us(work) * self._correction[work.has_prefill]))

    def learn(self, work: Work, took_us: float) -> None:
        """Take up what a step took."""
        expected = self._model_us(work) * self._correction[work.has_prefill]
        ratio = min(max(took_us / expected, 1 / MAX_RATIO), MAX_RATIO)
        self._correction[work.has_prefill] *= 1 + CORRECTION_SHARE * (ratio - 1)

    def _model_us(self, work: Work) -> float:
        return (
            self._fixed_us + self._per_token_us * work.tokens + self._per_context_us * work.context
        )
