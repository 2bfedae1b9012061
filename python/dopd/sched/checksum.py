"""The checksum of a shipment's pages, as both ends compute it (link.proto, `End.checksum`).

Seats hold one each; the desk feeds it outside of its lock, page by page as they become final: at
the source when they are written, at the destination when they have landed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

from dopd.types import KvCheck, LinkEnd

# Of either end of a page; a smaller page counts twice.
HEADER_BYTES = 64

Chunks = Callable[[Sequence[int], int | None], Iterable[memoryview]]
"""See `dopd.kv.base.PagePool.chunks`."""


class PagesHash:
    """sha256 over pages in their order. `num_pages`: the shipment's page that comes next; it begins
    behind those that do not travel."""

    def __init__(self, check: KvCheck, chunks: Chunks) -> None:
        self.num_pages = 0
        self._edge_bytes = None if check is KvCheck.FULL else HEADER_BYTES
        self._chunks = chunks
        self._sha = hashlib.sha256()

    def add(self, pages: Sequence[int]) -> None:
        """The shipment's next pages, whose bytes change no more."""
        for data in self._chunks(pages, self._edge_bytes):
            self._sha.update(data)
        self.num_pages += len(pages)

    def value(self) -> int:
        """The first 8 bytes, little endian."""
        return int.from_bytes(self._sha.digest()[:8], "little")


def checksum_error(found: PagesHash, end: LinkEnd) -> str | None:
    """Why the bytes that arrived are not those that were sent, or None."""
    if end.checksum is None:
        return "no checksum came, and this router wants the KV checked"
    if found.num_pages != end.pages or found.value() != end.checksum:
        return (
            f"checksum {found.value():#x} over {found.num_pages} pages, the source says "
            f"{end.checksum:#x} over {end.pages}: the KV was damaged on its way"
        )
    return None
