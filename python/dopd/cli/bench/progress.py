"""The progress bar of a run, on stderr and only on a terminal."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

from dopd.bar import Bar

REFRESH_S = 0.2


class Counted(Protocol):
    """What the bar needs to know of a sample."""

    last_s: float | None
    error: str | None


class Progress(Bar):
    """Shows how many of `total` requests have been sent, and how many of them failed."""

    def __init__(self, total: int, samples: Sequence[Counted]) -> None:
        super().__init__("sent", total, is_count=True, is_still=True)
        self._samples = samples

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it stands."""
        self._draw()
        super().__exit__(kind, error, trace)

    async def watch(self) -> None:
        """Count until cancelled."""
        while True:
            self._draw()
            await asyncio.sleep(REFRESH_S)

    def _draw(self) -> None:
        if self.is_drawn:
            failed = sum(sample.error is not None for sample in self._samples)
            self.show(len(self._samples), f"{failed} failed")
