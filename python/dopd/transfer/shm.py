"""The shm transport, between processes of one user on one machine: pages are pulled.

The source's pool is a sealed memory file (`kv/memory.py`); its descriptor comes with the source's
hello over an abstract Unix socket. A Write only says where pages lie. The destination reads them
from the file into its own pool and says Pulled; for the source they are written then, and so its
End goes out while it still holds them. A source that gives up frees its pages at once: what is read
from them after that belongs to a shipment without End ok, which nobody attends to.

The file is read, not mapped: a hole in it costs no memory of ours, a missing end is an error and no
SIGBUS, and the interpreter's lock is free meanwhile. Nothing of the peer can hold the reader up,
since memory does not block; that is why it must be a memory file, which the seals prove.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Sequence

from dopd.errors import LinkError
from dopd.kv.base import PagePool
from dopd.kv.memory import SEALS
from dopd.transfer import frames
from dopd.transfer.base import LinkEvents, LinkIdentity
from dopd.transfer.local import LocalTransport
from dopd.transfer.placed_link import PlacedLink
from dopd.transfer.stream import Shaken
from dopd.transfer.stream_link import LinkParts, StreamLink
from dopd.types import LinkHello


class PeerPages:
    """A source's pool, to read through a descriptor that its link owns."""

    def __init__(self, descriptor: int, page_bytes: int) -> None:
        self._descriptor = descriptor
        self._page_bytes = page_bytes
        self.num_pages = os.fstat(descriptor).st_size // page_bytes

    def read(self, first: int, views: list[memoryview]) -> None:
        """Copy pages first .. first + len(views). Raises LinkError if the file ends there."""
        offset = first * self._page_bytes

        def read(buffers: Sequence[memoryview]) -> int:
            nonlocal offset
            received = os.preadv(self._descriptor, buffers, offset)
            offset += received
            return received

        frames.receive_views(read, views, "memory file")


class ShmLink(PlacedLink):
    """See `PlacedLink`. Its descriptor is the peer's pool, if we are the destination."""

    _source: PeerPages | None = None

    def __init__(self, parts: LinkParts) -> None:
        super().__init__(parts)
        if parts.descriptors:
            self._source = PeerPages(parts.descriptors[0], parts.pool.page_bytes)

    def _pull(self, sources: list[int], targets: list[int]) -> None:
        assert self._source is not None
        for start, end in self._runs(sources):
            self._source.read(
                sources[start], [self._pool.page(page) for page in targets[start:end]]
            )


class ShmTransport(LocalTransport):
    """See `LocalTransport`."""

    name = "shm"

    def __init__(self, identity: LinkIdentity, pool: PagePool, events: LinkEvents) -> None:
        """Listens on a name of its own. Raises OSError; LinkError if the pool cannot be shared."""
        if pool.descriptor is None:
            raise LinkError("the pool is no sealed memory file")
        self._descriptor = pool.descriptor
        super().__init__(identity, pool, events)

    def _own_descriptors(self) -> list[int]:
        return [self._descriptor]

    def _refusal_of(self, hello: LinkHello, descriptors: list[int]) -> str:
        if len(descriptors) != 1:
            return "hello without a memory file"
        return memory_error(descriptors[0], self._pool.page_bytes)

    def _make_link(self, sock: socket.socket, shaken: Shaken) -> StreamLink:
        return ShmLink(self._parts(sock, shaken))


def memory_error(descriptor: int, page_bytes: int) -> str:
    """Why this is no pool of a peer; empty if it is."""
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError as error:
        return f"descriptor of the hello is no memory file: {error}"
    if seals & SEALS != SEALS:
        return f"memory file has seals {seals:#x}, {SEALS:#x} are needed"
    num_bytes = os.fstat(descriptor).st_size
    if num_bytes == 0 or num_bytes % page_bytes:
        return f"memory file of {num_bytes} bytes is not whole pages of {page_bytes}"
    return ""
