"""KV memory as transports see it, whatever it is made of. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

CPU = "cpu"


class PagePool(Protocol):
    """The KV memory of one worker.

    device: "cpu", or "cuda:0".
    descriptor: the sealed memory file that is the pages, one after another, and nothing else
    (`kv/memory.py`); None: other processes cannot read them.
    """

    num_pages: int
    page_bytes: int
    device: str
    descriptor: int | None

    def page(self, index: int) -> memoryview:
        """Writable bytes of one page (all layers), length page_bytes; valid as long as the pool.

        Of a pool in this process's memory alone. Writing is allowed only while no step reads the
        page: the seat table sees to that.
        """
        ...

    def address(self, index: int) -> int:
        """Where a page lies on its GPU; the next one is page_bytes further. Of a pool there alone.

        Good for as long as the pool.
        """
        ...

    def fill(self, pages: Sequence[int], byte: int) -> None:
        """Overwrite every byte of pages that no step and no peer uses. Done when it returns."""
        ...

    def chunks(self, pages: Sequence[int], edge_bytes: int | None) -> Iterator[memoryview]:
        """What a checksum reads of pages that change no more, in order, wherever it is cut: the
        first and the last edge_bytes of each (a smaller page twice), None: all of them."""
        ...


def chunks_of(
    page: Callable[[int], memoryview], pages: Sequence[int], edge_bytes: int | None
) -> Iterator[memoryview]:
    """See `PagePool.chunks`: of pages in this process's memory."""
    for index in pages:
        data = page(index)
        if edge_bytes is None:
            yield data
        else:
            yield data[:edge_bytes]
            yield data[-edge_bytes:]
