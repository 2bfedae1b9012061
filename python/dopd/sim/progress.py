"""How far a grid is: a bar with the time that is left on a terminal, else a line per cell."""

from __future__ import annotations

import time
from typing import TextIO

from dopd.bar import Bar


class Progress(Bar):
    """On stderr. `advance` may be called from one thread."""

    def __init__(self, title: str, total: int, stream: TextIO | None = None) -> None:
        super().__init__(title, total, is_count=True, is_left_told=True, stream=stream)
        self._done = 0
        self._start = time.monotonic()

    def advance(self, what: str) -> None:
        """One more is done: `what`."""
        self._done += 1
        if self.is_drawn:
            self.show(self._done, what)
            return
        spent = time.monotonic() - self._start
        left = spent / self._done * (self._total - self._done)
        done = f"{self._done}/{self._total:.0f} {self._title}"
        self._stream.write(f"{done}, {spent:.0f} s, {left:.0f} s left: {what}\n")
        self._stream.flush()
