"""A mock engine in modelled time: a step takes no time and moves the test's clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dopd.engine.mock import MockEngine
from dopd.engine.timings import Timings
from dopd.engine.torch_cost import work_of
from dopd.types import Result, Row, StepWork

# Near those of an 8B model on one H100.
H100_8B = Timings(
    "h100-8b",
    step_prefill_us=4_000,
    step_decode_us=1_600,
    weights_us=5_200,
    memory_us_per_token=6.0,
    compute_us_per_token=22.5,
    attention_us_per_pair=0.83e-3,
    context_us_per_token=4.4e-2,
    batch_us_per_seq=20,
    mixed_penalty_ratio=0.2,
)


class ModelledEngine(MockEngine):
    """Steps take what `timings` say. took: each step's work and microseconds, in order."""

    def __init__(self, num_pages: int, timings: Timings, pass_s: Callable[[float], None]) -> None:
        super().__init__(num_pages)
        self._modelled = timings
        self._pass_s = pass_s
        self.took: list[tuple[StepWork, int]] = []

    def cost_us(self, work: StepWork) -> int:
        """See `Engine.cost_us`."""
        return self._modelled.plain_us(work)

    def step(self, rows: Sequence[Row]) -> list[Result]:
        """Compute, and let the time pass."""
        work = work_of(rows)
        step_us = self.cost_us(work)
        if work.is_mixed:
            step_us = round(step_us * (1 + self._modelled.mixed_penalty_ratio))
        self.took.append((work, step_us))
        self._pass_s(step_us / 1e6)
        return super().step(rows)
