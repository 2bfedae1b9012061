"""How often the host's work for a decode step was done while the step before was computed.

Counted by `engine/runner`, told in the worker's log and by `dopd bench engine`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

log = logging.getLogger(__name__)

# Steps from one line of the log to the next: some minutes of a busy GPU.
TELL_EVERY = 20_000


@dataclass(slots=True)
class Foresight:
    """Of decode steps for which something was prepared: hits, it was what came; misses, the batch
    had changed, and the device waited for the host."""

    hits: int = 0
    misses: int = 0
    _told_hits: int = 0

    def count(self, *, is_hit: bool) -> None:
        """One more step; every TELL_EVERY of them the log says how many of these were hits."""
        if is_hit:
            self.hits += 1
        else:
            self.misses += 1
        if (self.hits + self.misses) % TELL_EVERY == 0:
            hits = self.hits - self._told_hits
            self._told_hits = self.hits
            log.info("%d of the last %d decode steps were planned ahead", hits, TELL_EVERY)

    def forget(self) -> None:
        """Begin anew."""
        self.hits = self.misses = self._told_hits = 0


def of(engine: object) -> Foresight | None:
    """An engine's own counts; None: it prepares nothing ahead."""
    found = getattr(engine, "foresight", None)
    return found if isinstance(found, Foresight) else None
