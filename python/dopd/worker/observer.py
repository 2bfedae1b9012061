"""Who is told which sequences take part in steps. The desk calls; `spans` listens."""

from __future__ import annotations

from collections.abc import Iterable

from dopd.sched.sequence import Sequence


class Observer:
    """Told under the lock which sequences take part in steps; must not block. This one ignores."""

    def joined(self, sequence: Sequence) -> None:
        """It takes part from now on."""

    def stepped(self, sequences: Iterable[Sequence]) -> None:
        """A step of these ended; some have a new token."""

    def left(self, sequence: Sequence) -> None:
        """It takes part no longer."""
