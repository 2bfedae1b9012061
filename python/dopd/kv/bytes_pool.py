"""A page pool of plain bytes: KV of the mock engine and of tests. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dopd.errors import DopdError
from dopd.kv.base import CPU, chunks_of
from dopd.kv.memory import PoolMemory


class BytesPool:
    """num_pages * page_bytes zeroed bytes, which the system backs only where they are written."""

    def __init__(self, num_pages: int, page_bytes: int) -> None:
        self.num_pages = num_pages
        self.page_bytes = page_bytes
        self.device = CPU
        self._memory = PoolMemory(num_pages * page_bytes)
        self.descriptor = self._memory.descriptor
        self.memory = memoryview(self._memory.buffer)

    def page(self, index: int) -> memoryview:
        """Writable bytes of one page; see `dopd.kv.base.PagePool`."""
        if not 0 <= index < self.num_pages:
            raise IndexError(f"page {index} is outside the pool of {self.num_pages}")
        start = index * self.page_bytes
        return self.memory[start : start + self.page_bytes]

    def address(self, index: int) -> int:
        """See `dopd.kv.base.PagePool`: there is none."""
        raise DopdError(f"page {index} is on the {self.device}; device transports cannot move it")

    def fill(self, pages: Sequence[int], byte: int) -> None:
        """See `dopd.kv.base.PagePool`."""
        content = bytes([byte]) * self.page_bytes
        for page in pages:
            self.page(page)[:] = content

    def chunks(self, pages: Sequence[int], edge_bytes: int | None) -> Iterator[memoryview]:
        """See `dopd.kv.base.PagePool`."""
        return chunks_of(self.page, pages, edge_bytes)
