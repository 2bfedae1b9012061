"""Where the bytes of pages are for a socket: in the pool itself, or on their way to and from a GPU.

Called by `tcp`, one stager a link and direction.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from dopd.errors import LinkError
from dopd.kv.base import PagePool
from dopd.transfer.cuda import Device, PinnedBuffer, Stream
from dopd.transfer.rest import come_to_rest

# The copies of one frame. A device that is busy with steps takes milliseconds.
COPY_S = 10.0


class Stager(Protocol):
    """Bytes of pages. Used by one thread at a time. pages_max: how many at once."""

    pages_max: int

    def outgoing(self, pages: Sequence[int]) -> list[memoryview]:
        """Bytes of pages of ours, in order; good until the next call. Raises LinkError."""
        ...

    def incoming(self, pages: Sequence[int]) -> list[memoryview]:
        """What is to be filled, in order, and then to `land` in these pages. Raises LinkError."""
        ...

    def land(self, pages: Sequence[int]) -> None:
        """Put what was filled into these pages; it is there on return. Raises LinkError."""
        ...

    def close(self) -> bool:
        """Wait until nothing is under way, and give back what is held. False: it does not end."""
        ...


class PoolViews:
    """Of a pool in this process's memory: its pages as they are."""

    pages_max = sys.maxsize

    def __init__(self, pool: PagePool) -> None:
        self._page = pool.page

    def outgoing(self, pages: Sequence[int]) -> list[memoryview]:
        """See `Stager`; so are the others."""
        return [self._page(page) for page in pages]

    incoming = outgoing

    def land(self, pages: Sequence[int]) -> None:
        """They are there."""

    def close(self) -> bool:
        """Nothing is held."""
        return True


class PinnedStager:
    """Of a pool on a GPU: through one frame of pinned memory, taken when it is first needed."""

    def __init__(self, pool: PagePool, device: Device, pages_max: int) -> None:
        self.pages_max = pages_max
        self._pool = pool
        self._device = device
        self._stream: Stream | None = None
        self._buffer: PinnedBuffer | None = None

    def outgoing(self, pages: Sequence[int]) -> list[memoryview]:
        """See `Stager`; so are the others."""
        stream, buffer = self._opened()
        size = self._pool.page_bytes
        for start, end in runs(pages):
            address = self._pool.address(pages[start])
            stream.copy(buffer.address + start * size, address, (end - start) * size)
        self._finish(stream, len(pages))
        return [buffer.view[: len(pages) * size]]

    def incoming(self, pages: Sequence[int]) -> list[memoryview]:
        """The buffer."""
        _, buffer = self._opened()
        return [buffer.view[: len(pages) * self._pool.page_bytes]]

    def land(self, pages: Sequence[int]) -> None:
        """By as few copies as there are runs of neighbours."""
        stream, buffer = self._opened()
        size = self._pool.page_bytes
        for start, end in runs(pages):
            address = self._pool.address(pages[start])
            stream.copy(address, buffer.address + start * size, (end - start) * size)
        self._finish(stream, len(pages))

    def close(self) -> bool:
        """The buffer must not go before the copies have."""
        if self._stream is not None:
            if not come_to_rest(self._stream):
                return False
            self._stream.close()
        if self._buffer is not None:
            self._buffer.close()
        return True

    def _opened(self) -> tuple[Stream, PinnedBuffer]:
        if self._stream is None:
            self._stream = self._device.stream()
        if self._buffer is None:
            self._buffer = self._device.pin(self.pages_max * self._pool.page_bytes)
        return self._stream, self._buffer

    def _finish(self, stream: Stream, num_pages: int) -> None:
        if not stream.synchronise(COPY_S):
            raise LinkError(f"{num_pages} pages were not copied within {COPY_S:g} s")


def stagers(pool: PagePool, device: Device | None) -> Callable[[int], Stager]:
    """How to make a stager of so many pages. device: None for a pool in this process's memory."""
    if device is None:
        return lambda pages_max: PoolViews(pool)
    return lambda pages_max: PinnedStager(pool, device, pages_max)


def runs(pages: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where neighbours begin and end."""
    start = 0
    for index in range(1, len(pages) + 1):
        if index == len(pages) or pages[index] != pages[index - 1] + 1:
            yield start, index
            start = index
