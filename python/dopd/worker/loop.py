"""The step loop: the main thread of a worker, and the only one that calls the engine."""

from __future__ import annotations

import time
from collections.abc import Callable

from dopd.engine.base import Engine
from dopd.sched.batch import Batch
from dopd.types import Result
from dopd.worker.desk import Desk

# How late an idle loop sees a drain and an overdue fence; work wakes it at once.
IDLE_S = 0.1


class StepLoop:
    """Continuous batching: commands in, one engine step, one report out, again."""

    def __init__(
        self, desk: Desk, engine: Engine, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._desk = desk
        self._engine = engine
        self._clock = clock

    def run(self) -> None:
        """Step until the desk is stopped, or drained and empty. Raises what the device raises."""
        try:
            while not self._desk.is_over:
                self._desk.wait(IDLE_S)
                self.turn()
        finally:
            self._desk.is_left = True

    def turn(self) -> None:
        """One turn; without anything to compute it still takes commands and reports."""
        self._desk.let_reports_go()
        self._desk.take_commands()
        batch = self._desk.plan()
        results, step_us = self._compute(batch)
        self._desk.publish(batch, results, step_us)

    def _compute(self, batch: Batch | None) -> tuple[list[Result], int]:
        if batch is None:
            return [], 0
        begun = self._clock()
        results = self._engine.step(batch.rows)
        # At least 1: a report with step_us 0 closes no step.
        return results, max(1, int((self._clock() - begun) * 1e6))
