"""KV memory as transports see it, whatever it is made of. Imports no torch."""

from __future__ import annotations

from typing import Protocol


class PagePool(Protocol):
    """The KV memory of one worker."""

    num_pages: int
    page_bytes: int

    def page(self, index: int) -> memoryview:
        """Writable bytes of one page (all layers), length page_bytes; valid as long as the pool.

        Writing is allowed only while no step reads the page: the seat table sees to that.
        """
        ...
