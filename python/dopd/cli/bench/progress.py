"""The progress bar of a run, on stderr and only on a terminal."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import rich.progress

REFRESH_S = 0.2


class Counted(Protocol):
    """What the bar needs to know of a sample."""

    last_s: float | None
    error: str | None


class Progress:
    """Shows how many of `total` requests have been sent, and how many are still open."""

    def __init__(self, total: int, samples: Sequence[Counted]) -> None:
        self._total = total
        self._samples = samples
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        """Start drawing if stderr is a terminal."""
        if sys.stderr.isatty():
            import rich.console
            import rich.progress

            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("sent"),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeElapsedColumn(),
                rich.progress.TextColumn("{task.description}"),
                console=rich.console.Console(stderr=True),
                auto_refresh=False,
            )
            self._bar.add_task("", total=self._total)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._draw(self._bar)
            self._bar.stop()

    async def watch(self) -> None:
        """Redraw until cancelled."""
        while True:
            if self._bar is not None:
                self._draw(self._bar)
            await asyncio.sleep(REFRESH_S)

    def _draw(self, bar: rich.progress.Progress) -> None:
        failed = sum(sample.error is not None for sample in self._samples)
        task = bar.tasks[0].id
        bar.update(task, completed=len(self._samples), description=f"{failed} failed")
        bar.refresh()
