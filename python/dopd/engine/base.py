"""What the step loop asks of an engine. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dopd.kv.base import PagePool as PagePool
from dopd.types import KvGeometry, Result, Row, StepWork


class Engine(Protocol):
    """Computes steps over a paged pool. Called from one thread only."""

    geometry: KvGeometry
    model: str
    device: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    timings_json: str

    @property
    def pool(self) -> PagePool:
        """The KV memory that rows' page numbers mean."""
        ...

    def step(self, rows: Sequence[Row]) -> list[Result]:
        """Compute one step: decode rows first, then prefill rows; at least one row.

        Returns one entry per row, in order: the drawn token; None if the row draws none; both
        inside of a `Scored` if the row has targets; an exception if this row alone failed (the
        others stand). Raises only if the device is unusable.
        """
        ...

    def cost_us(self, work: StepWork) -> int:
        """Prediction of a step's duration in microseconds; 0 if unknown, and for no work. Without
        what it costs more to compute prompts beside sequences that decode: that is learnt from the
        steps (`sched/belief`). Never less for more tokens; asked often: never raises, takes a few
        microseconds.
        """
        ...
