"""How far a grid is: a bar with the time that is left on a terminal, else a line per cell."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import rich.progress


class Progress:
    """On stderr. `advance` may be called from one thread."""

    def __init__(self, title: str, total: int, stream: TextIO | None = None) -> None:
        self._title = title
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._done = 0
        self._start = time.monotonic()
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Progress:
        """Start drawing if that is a terminal."""
        if self._stream.isatty() and self._total:
            import rich.console
            import rich.progress

            self._bar = rich.progress.Progress(
                rich.progress.TextColumn(self._title),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeElapsedColumn(),
                rich.progress.TextColumn("left"),
                rich.progress.TimeRemainingColumn(),
                rich.progress.TextColumn("{task.description}"),
                console=rich.console.Console(file=self._stream),
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
            self._bar.stop()

    def advance(self, what: str) -> None:
        """One more is done: `what`."""
        self._done += 1
        if self._bar is not None:
            task = self._bar.tasks[0].id
            self._bar.update(task, completed=self._done, description=what)
            return
        spent = time.monotonic() - self._start
        left = spent / self._done * (self._total - self._done)
        line = f"{self._done}/{self._total} {self._title}, {spent:.0f} s, {left:.0f} s left: {what}"
        self._stream.write(line + "\n")
        self._stream.flush()
