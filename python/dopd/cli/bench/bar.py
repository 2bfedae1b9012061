"""A bar on stderr for work whose share is known; nothing where no person looks."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress


class Bar:
    """`with Bar("steps") as bar: bar.show(0.5, "prefill 512")`."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Bar:
        """Start drawing if stderr is a terminal."""
        if sys.stderr.isatty():
            import rich.console
            import rich.progress

            self._bar = rich.progress.Progress(
                rich.progress.TextColumn(self._title),
                rich.progress.BarColumn(),
                rich.progress.TaskProgressColumn(),
                rich.progress.TimeElapsedColumn(),
                rich.progress.TextColumn("{task.description}"),
                console=rich.console.Console(stderr=True),
            )
            self._bar.add_task("", total=1.0)
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

    def show(self, share: float, what: str) -> None:
        """Draw. share: 0.0 to 1.0."""
        if self._bar is not None:
            self._bar.update(self._bar.tasks[0].id, completed=share, description=what)
