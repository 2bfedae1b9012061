"""Whose bytes each page may still hold: which pages are to be zeroed before a seat gets them.

Owned by the seat table, called under its lock. Eight bytes a page, which the system backs only
where pages were ever used. Who shares pages (the choices of one prompt) is of one tenant.
"""

from __future__ import annotations

from array import array

from dopd.sched.pages import runs_of
from dopd.types import KvScrub

# Zeros: never owned. The pool begins so.
CLEAN = 0
# Requests without a tenant are of one.
NO_TENANT = (1 << 64) - 1
# Of pages that a peer may write: a source that gave up may have sent what was another's already.
ANYBODY = (1 << 64) - 2


class PageOwners:
    """The tenant that had each page last."""

    def __init__(self, num_pages: int) -> None:
        self._last = memoryview(bytearray(8 * num_pages)).cast("Q")

    def claim(self, pages: list[int], tenant: int, scrub: KvScrub) -> list[int]:
        """A seat of this tenant (0: none) has the pages now. Returns those that it must get
        zeroed."""
        own = {CLEAN} if scrub is KvScrub.ALWAYS else {CLEAN, tenant or NO_TENANT}
        dirty: list[int] = []
        if scrub is not KvScrub.NEVER:
            for start, length in runs_of(pages):
                last = self._last[start : start + length]
                if not own.issuperset(last):
                    dirty += [page for page, it in enumerate(last, start) if it not in own]
        self.note(pages, tenant)
        return dirty

    def note(self, pages: list[int], tenant: int) -> None:
        """Their bytes are of this tenant (0: none), or of ANYBODY."""
        word = tenant or NO_TENANT
        for start, length in runs_of(pages):
            self._last[start : start + length] = array("Q", [word]) * length
