"""Faults of the mock engine, for tests of what others make of them (--mock-fault KIND=MARKER).

A fault belongs to the sequences whose tokens contain the marker, as text: in the prompt, or in the
answer, which the mock's arithmetic makes known beforehand. It happens in the step that computes the
marker's last token: so a marker in the answer strikes a worker that decodes and never saw the
prompt, at a token of the test's choice. Made by `worker/build`.
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dopd.engine.mock import MockEngine
from dopd.errors import ConfigError, DopdError
from dopd.types import Result, Row, Sampled, Scored

EXIT_CODE = 86
SLOW_FACTOR = 10
# A step without a time of its own, of timings "instant", is taken for so long.
SLOW_STEP_US = 10_000
# Far outside of any vocabulary.
LIE_TOKEN = 1 << 30


class FaultKind(enum.Enum):
    """What goes wrong in the step that computes a marker."""

    EXIT = "exit"
    """The process ends without a word."""
    HANG = "hang"
    """The step never ends; heartbeats go on."""
    RAISE = "raise"
    """The row alone fails."""
    SLOW = "slow"
    """This step, and every later one of the sequence, takes ten times as long as announced."""
    LIE = "lie"
    """The token drawn is outside of the vocabulary."""
    WRONG = "wrong"
    """The token drawn is another one: what a test of right answers must notice."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One --mock-fault."""

    kind: FaultKind
    marker: str


def parse_fault(text: str) -> Fault:
    """KIND=MARKER. Raises ConfigError."""
    name, _, marker = text.partition("=")
    kinds = [kind.value for kind in FaultKind]
    if name not in kinds or not marker:
        raise ConfigError(f"mock fault {text!r} is not KIND=MARKER with KIND of {', '.join(kinds)}")
    # One character for each token of the byte tokenizer.
    return Fault(FaultKind(name), marker.encode().decode("latin-1"))


@dataclass(slots=True)
class Past:
    """What was seen of the sequence in a slot: its page list (which tells it from the slot's next
    sequence), the position after what was seen, its last characters, whether it is a slow one."""

    pages: list[int]
    position: int
    tail: str = ""
    is_slow: bool = False


class FaultyEngine(MockEngine):
    """A mock engine in which marked sequences go wrong."""

    def __init__(self, faults: Sequence[Fault], *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._faults = faults
        self._tail_length = max((len(fault.marker) for fault in faults), default=1) - 1
        # By slot: as many as the worker has seats.
        self._past: dict[int, Past] = {}

    def step(self, rows: Sequence[Row]) -> list[Result]:
        """See `Engine.step`; what was asked for goes wrong."""
        struck = [self._strike(row) for row in rows]
        kinds = {kind for row in struck for kind in row}
        if FaultKind.EXIT in kinds:
            os._exit(EXIT_CODE)
        if FaultKind.HANG in kinds:
            threading.Event().wait()
        results = [
            self._spoil(result, row) for result, row in zip(super().step(rows), struck, strict=True)
        ]
        if any(self._past[row.slot].is_slow for row in rows):
            step_us = self.step_us(rows) or SLOW_STEP_US
            self._sleep((SLOW_FACTOR - 1) * step_us / 1e6)
        return results

    def _strike(self, row: Row) -> set[FaultKind]:
        """Faults whose markers these tokens complete."""
        past = self._past.get(row.slot)
        if past is None or past.pages is not row.pages or past.position != row.start:
            past = self._past[row.slot] = Past(row.pages, row.start)
        # What the lie left behind is no character.
        text = past.tail + "".join(chr(token % LIE_TOKEN) for token in row.tokens)
        kinds = {fault.kind for fault in self._faults if fault.marker in text}
        past.position += len(row.tokens)
        past.tail = text[len(text) - self._tail_length :] if self._tail_length else ""
        past.is_slow = past.is_slow or FaultKind.SLOW in kinds
        return kinds

    def _spoil(self, result: Result, kinds: set[FaultKind]) -> Result:
        if FaultKind.RAISE in kinds:
            return DopdError("mock fault: this row was told to fail")
        sampled = result.sampled if isinstance(result, Scored) else result
        if isinstance(sampled, Sampled):
            if FaultKind.LIE in kinds:
                sampled.token = LIE_TOKEN
            if FaultKind.WRONG in kinds:
                sampled.token ^= 1
        return result
