"""A bar for long work, drawn where a person looks: on a terminal, else nowhere.

The benches' and the simulator's progress is made of it.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    import rich.progress


class Bar:
    """`with Bar("steps", 1.0) as bar: bar.show(0.5, "prefill 512")`. Used by one thread.

    total: what `show` counts up to; nothing is drawn for 0. is_count: tell it as numbers, not as
    percents. is_left_told: and the time that is left. is_still: drawn by `show` alone, without a
    thread beside what is measured. stream: stderr if None.
    """

    def __init__(
        self,
        title: str,
        total: float,
        *,
        is_count: bool = False,
        is_left_told: bool = False,
        is_still: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self._title = title
        self._total = total
        self._is_count = is_count
        self._is_left_told = is_left_told
        self._is_still = is_still
        self._stream = sys.stderr if stream is None else stream
        self._bar: rich.progress.Progress | None = None

    @property
    def is_drawn(self) -> bool:
        """Whether anybody sees it; from the start on."""
        return self._bar is not None

    def __enter__(self) -> Self:
        """Start drawing if that is a terminal."""
        if self._stream.isatty() and self._total:
            import rich.console
            import rich.progress

            columns: list[rich.progress.ProgressColumn] = [
                rich.progress.TextColumn(self._title),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn()
                if self._is_count
                else rich.progress.TaskProgressColumn(),
                rich.progress.TimeElapsedColumn(),
            ]
            if self._is_left_told:
                columns += [
                    rich.progress.TextColumn("left"),
                    rich.progress.TimeRemainingColumn(),
                ]
            columns.append(rich.progress.TextColumn("{task.description}"))
            console = rich.console.Console(file=self._stream)
            self._bar = rich.progress.Progress(
                *columns, console=console, auto_refresh=not self._is_still
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

    def show(self, done: float, what: str) -> None:
        """Draw that `done` of the total is done; `what`: in words."""
        if self._bar is not None:
            still = self._is_still
            self._bar.update(self._bar.tasks[0].id, completed=done, description=what, refresh=still)
