"""A page pool in ordinary memory: KV of the mock engine and of tests. Imports no torch."""

from __future__ import annotations


class BytesPool:
    """num_pages * page_bytes zeroed bytes, which the system backs only where they are written."""

    def __init__(self, num_pages: int, page_bytes: int) -> None:
        self.num_pages = num_pages
        self.page_bytes = page_bytes
        self.memory = memoryview(bytearray(num_pages * page_bytes))

    def page(self, index: int) -> memoryview:
        """Writable bytes of one page; see `dopd.engine.base.PagePool`."""
        assert 0 <= index < self.num_pages, f"page {index} of {self.num_pages}"
        start = index * self.page_bytes
        return self.memory[start : start + self.page_bytes]
