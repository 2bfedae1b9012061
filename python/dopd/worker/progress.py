"""Progress of start-up on stderr: a bar on a terminal, one line per stage elsewhere."""

from __future__ import annotations

import logging
from typing import TextIO

log = logging.getLogger(__name__)

BAR_WIDTH = 30


class Progress:
    """Called by an engine with a stage and the share of it that is done, 0.0 to 1.0."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_terminal = out.isatty()
        self._stage = ""

    def __call__(self, stage: str, share: float) -> None:
        """Show how far a stage is."""
        if self._is_terminal:
            filled = round(share * BAR_WIDTH)
            end = "\n" if share >= 1 else ""
            bar = "#" * filled + "-" * (BAR_WIDTH - filled)
            self._out.write(f"\r{stage:>10} [{bar}] {share:4.0%}{end}")
            self._out.flush()
        elif stage != self._stage:
            log.info("start-up: %s", stage)
        self._stage = stage
