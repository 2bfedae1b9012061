"""Progress of start-up on stderr: a bar on a terminal, one line per finished stage elsewhere.

A supervisor that draws for a person sets DOPD_PROGRESS and gets a line per step of a stage.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TextIO

from dopd import env

log = logging.getLogger(__name__)

BAR_WIDTH = 30
# Steps of a stage that a supervisor is told.
STEPS = 20
# A rate over less time says more about the clock than about the disk.
RATED_FROM_S = 0.05


class Progress:
    """Called by an engine with a stage, the share of it that is done, 0.0 to 1.0, and its bytes."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._is_terminal = out.isatty()
        self._is_followed = env.get("PROGRESS") is not None
        self._stage = ""
        self._step = -1
        self._begun = 0.0

    def __call__(self, stage: str, share: float, num_bytes: int = 0) -> None:
        """Show how far a stage is. num_bytes: done so far; 0: the stage is not about bytes."""
        now = self._clock()
        if stage != self._stage:
            self._stage, self._step, self._begun = stage, -1, now
        took = describe(num_bytes, now - self._begun)
        if self._is_terminal:
            filled = round(share * BAR_WIDTH)
            end = "\n" if share >= 1 else ""
            bar = "#" * filled + "-" * (BAR_WIDTH - filled)
            # The last figures may be longer than these: clear the rest of the line.
            self._out.write(f"\r{stage:>8} [{bar}] {share:4.0%}  {took}\x1b[K{end}")
            self._out.flush()
        elif self._is_followed:
            step = int(share * STEPS)
            if step != self._step:
                # The form that router/src/launch/loading.rs reads.
                self._out.write(f"start-up: {stage} {share:.0%}\n")
                self._out.flush()
            self._step = step
        elif share >= 1:
            log.info("start-up: %s, %s", stage, took)


def describe(num_bytes: int, seconds: float) -> str:
    """`538 MB in 1.2 s, 448 MB/s`; without bytes only the time."""
    if not num_bytes:
        return f"{seconds:.1f} s"
    rate = f", {in_units(num_bytes / seconds)}/s" if seconds >= RATED_FROM_S else ""
    return f"{in_units(num_bytes)} in {seconds:.1f} s{rate}"


def in_units(num_bytes: float) -> str:
    """`950 kB`, `1.2 GB`: three digits at most before the unit."""
    units = iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while num_bytes >= 999.5 and unit != "TB":
        num_bytes, unit = num_bytes / 1000, next(units)
    is_short = num_bytes < 9.95 and unit != "B"
    return f"{num_bytes:.1f} {unit}" if is_short else f"{num_bytes:.0f} {unit}"
