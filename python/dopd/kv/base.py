"""KV memory as transports see it, whatever it is made of. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class PagePool(Protocol):
    """The KV memory of one worker.

    descriptor: the sealed memory file that is the pages, one after another, and nothing else
    (`kv/memory.py`); None: other processes cannot read them.
    """

    num_pages: int
    page_bytes: int
    descriptor: int | None

    def page(self, index: int) -> memoryview:
        """Writable bytes of one page (all layers), length page_bytes; valid as long as the pool.

        Writing is allowed only while no step reads the page: the seat table sees to that.
        """
        ...

    def fill(self, pages: Sequence[int], byte: int) -> None:
        """Overwrite every byte of pages that no step and no peer uses."""
        ...
