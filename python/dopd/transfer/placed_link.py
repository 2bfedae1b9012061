"""A link on which a Write says where its pages lie, and the destination reads them there: `shm`,
`cuda_ipc`.

What lies there is the source's memory, which came with its hello. A source that gives up frees its
pages at once: what is read from them after that belongs to a shipment without End ok, which nobody
attends to.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Protocol

from dopd.errors import LinkError
from dopd.transfer import frames
from dopd.transfer.pulled_link import PulledLink
from dopd.types import LinkPulled, LinkWrite


class PeerMemory(Protocol):
    """A source's pool, as its destination sees it."""

    num_pages: int


class PlacedLink(PulledLink):
    """See `PulledLink`."""

    # The peer's pool, if we are the destination.
    _source: PeerMemory | None = None

    @abc.abstractmethod
    def _pull(self, sources: list[int], targets: list[int]) -> None:
        """Copy pages of the source, which were checked, into ours; they are there on return.

        Raises LinkError; what was begun may land until the link is at rest.
        """

    # Source

    def _write_pages(self, nonce: int, first: int, pages: list[int]) -> None:
        self._note_sent(nonce, len(pages))
        frames.send_frame(self._sock, LinkWrite(nonce, first, len(pages), pages), [])

    # Destination

    def _land(self, write: LinkWrite, num_payload: int) -> None:
        sources = write.source_pages
        if num_payload or len(sources) != write.count or self._source is None:
            raise LinkError(
                f"{num_payload} bytes and {len(sources)} places for {write.count} pages, "
                f"{'no' if self._source is None else 'a'} pool to read them from"
            )
        if sources and max(sources) >= self._source.num_pages:
            raise LinkError(f"source page {max(sources)}, its pool has {self._source.num_pages}")
        targets = self._events.targets(self, write.nonce, write.first, write.count)
        self._pull(sources, targets)
        self._events.landed(self, write.nonce, write.first, write.count)
        self._put(LinkPulled(write.nonce, write.count))

    def _runs(self, *columns: list[int]) -> Iterator[tuple[int, int]]:
        """Where neighbours begin and end that are so in every column: often the whole frame."""
        start, num_pages = 0, len(columns[0])
        while start < num_pages:
            if self._is_shut:
                # Of a peer that named the whole pool, to hold up synchronise().
                raise LinkError("shut in the middle of a write")
            end = start + 1
            most = min(num_pages, start + self._frame_pages)
            while end < most and all(pages[end] == pages[end - 1] + 1 for pages in columns):
                end += 1
            yield start, end
            start = end
