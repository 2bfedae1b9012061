"""Runs side by side that end when their caller does.

Python gives Ctrl-C to the main thread alone: a run in another thread would go on to its end, and
the process with it. So a run asks now and then whether its pool is over (`running`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from types import TracebackType

from dopd.errors import DopdError

Tell = Callable[[int, int], None]

_is_over: ContextVar[threading.Event | None] = ContextVar("is_over", default=None)


class Stopped(DopdError):
    """The pool of this run is over; nobody waits for what comes of it."""


class Pool(ThreadPoolExecutor):
    """Threads that simulate. Left by an error or by Ctrl-C, it ends what runs within 0.1 s."""

    def __init__(self, jobs: int) -> None:
        self._over = threading.Event()
        super().__init__(jobs, initializer=_is_over.set, initargs=(self._over,))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for all, or end all."""
        if kind is not None:
            self._over.set()
        self.shutdown(wait=True, cancel_futures=kind is not None)


def running(progress: Tell | None) -> Tell | None:
    """`progress` for a run of this thread, which raises Stopped once its pool is over."""
    over = _is_over.get()
    if over is None:
        return progress

    def tell(ended: int, requests: int) -> None:
        if over.is_set():
            raise Stopped("the run was stopped")
        if progress is not None:
            progress(ended, requests)

    return tell
