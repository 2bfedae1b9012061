"""The order in which a device works off what it was given, as the engine sees it."""

from __future__ import annotations

from typing import Protocol


class Stream(Protocol):
    """Work is given without waiting; it is done later, in the order in which it was given."""

    def synchronise(self) -> None:
        """Return when all of it is done. Raises what the device raises."""
        ...

    def mark(self) -> None:
        """Remember this place in the order, and no earlier one."""
        ...

    def wait(self) -> None:
        """Return when what was given before the last mark is done: host memory that it was to be
        read from may be written again."""
        ...


class HostStream:
    """A CPU: what it was given is done when the call returns."""

    def synchronise(self) -> None:
        """See `Stream.synchronise`."""

    def mark(self) -> None:
        """See `Stream.mark`."""

    def wait(self) -> None:
        """See `Stream.wait`."""
