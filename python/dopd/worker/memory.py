"""What a worker does to the bytes of its pages beside computing: hash, zero, poison.

Owned by the desk. Zeroing happens in the step loop's thread and outside of the desk's lock, after
the commands that opened seats and before anything can use the pages: a step comes later in the same
thread, and a grant is reported later still.
"""

from __future__ import annotations

import threading

from dopd.kv.base import PagePool
from dopd.sched import events as ev
from dopd.sched.checksum import PagesHash
from dopd.sched.seats import Seats
from dopd.types import KvCheck, KvScrub

# NaN in every float type of ours, and no u64 that the mock would ever compute.
POISON = 0xFF


class KvMemory:
    """The pool behind a seat table. With `is_poisoning` (tests) freed pages are overwritten with
    POISON, so that whoever reads one shows it; a seat always gets its pages zeroed then."""

    def __init__(self, pool: PagePool, seats: Seats, is_poisoning: bool) -> None:
        self._pool = pool
        self._seats = seats
        self._is_poisoning = is_poisoning
        self._check = KvCheck.OFF
        self._dirty: list[int] = []
        seats.new_hash = self._new_hash
        if is_poisoning:
            seats.pages.on_free = self._poison

    def begin_session(self, check: KvCheck, scrub: KvScrub) -> None:
        """What the router of a new session wants. Under the lock."""
        self._check = check
        self._seats.scrub = KvScrub.ALWAYS if self._is_poisoning else scrub

    def note(self, effect: ev.Scrub) -> None:
        """These pages changed hands. Under the lock."""
        self._dirty += effect.pages

    @property
    def is_dirty(self) -> bool:
        """Something waits to be zeroed. Under the lock."""
        return bool(self._dirty)

    def scrub(self, lock: threading.Condition) -> None:
        """Zero what changed hands. By the step loop, without the lock, which is taken to look."""
        with lock:
            dirty, self._dirty = self._dirty, []
        if dirty:
            self._pool.fill(dirty, 0)

    def _new_hash(self) -> PagesHash | None:
        return None if self._check is KvCheck.OFF else PagesHash(self._check, self._pool.chunks)

    def _poison(self, start: int, length: int) -> None:
        self._pool.fill(range(start, start + length), POISON)
