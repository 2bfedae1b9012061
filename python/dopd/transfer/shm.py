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
import secrets
import socket
import struct
from collections.abc import Callable, Sequence

from dopd.errors import LinkError, LinkRefusedError
from dopd.kv.base import PagePool
from dopd.kv.memory import SEALS
from dopd.transfer import frames
from dopd.transfer.base import LinkEvents, LinkIdentity
from dopd.transfer.host import host_id
from dopd.transfer.pulled_link import PulledLink
from dopd.transfer.stream import HANDSHAKES_MAX, Shaken, StreamTransport
from dopd.transfer.stream_link import StreamLink
from dopd.types import Endpoint, LinkHello, LinkPulled, LinkWrite

# struct ucred: pid, uid, gid.
CREDENTIALS = struct.Struct("iII")


class PeerPages:
    """A source's pool, to read through a descriptor that its link owns."""

    def __init__(self, descriptor: int, page_bytes: int) -> None:
        self._descriptor = descriptor
        self._page_bytes = page_bytes
        self._num_pages = os.fstat(descriptor).st_size // page_bytes

    def check(self, pages: list[int]) -> None:
        """Raises LinkError if one lies outside."""
        if pages and max(pages) >= self._num_pages:
            raise LinkError(f"source page {max(pages)}, its pool has {self._num_pages}")

    def read(self, first: int, views: list[memoryview]) -> None:
        """Copy pages first .. first + len(views). Raises LinkError if the file ends there."""
        offset = first * self._page_bytes

        def read(buffers: Sequence[memoryview]) -> int:
            nonlocal offset
            received = os.preadv(self._descriptor, buffers, offset)
            offset += received
            return received

        frames.receive_views(read, views, "memory file")


class ShmLink(PulledLink):
    """See `PulledLink`. Its descriptor is the peer's pool, if we are the destination."""

    def __init__(
        self,
        sock: socket.socket,
        pool: PagePool,
        events: LinkEvents,
        on_down: Callable[[StreamLink], None],
        label: str,
        descriptors: list[int],
    ) -> None:
        super().__init__(sock, pool, events, on_down, label, descriptors)
        self._source = PeerPages(descriptors[0], pool.page_bytes) if descriptors else None

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
                f"{'no' if self._source is None else 'a'} memory file"
            )
        self._source.check(sources)
        targets = self._events.targets(self, write.nonce, write.first, write.count)
        self._pull(self._source, sources, targets)
        self._events.landed(self, write.nonce, write.first, write.count)
        self._put(LinkPulled(write.nonce, write.count))

    def _pull(self, source: PeerPages, sources: list[int], targets: list[int]) -> None:
        """Copy in runs of neighbours: often the whole frame in one call."""
        start = 0
        while start < len(sources):
            if self._is_shut:
                # Of a peer that named the whole pool, to hold up synchronise().
                raise LinkError("shut in the middle of a write")
            end = start + 1
            most = min(len(sources), start + self._frame_pages)
            while end < most and sources[end] == sources[end - 1] + 1:
                end += 1
            source.read(sources[start], [self._pool.page(page) for page in targets[start:end]])
            start = end


class ShmTransport(StreamTransport):
    """See `StreamTransport`."""

    name = "shm"

    def __init__(self, identity: LinkIdentity, pool: PagePool, events: LinkEvents) -> None:
        """Listens on a name of its own. Raises OSError; LinkError if the pool cannot be shared."""
        if pool.descriptor is None:
            raise LinkError("the pool is no sealed memory file")
        self._descriptor = pool.descriptor
        # Abstract: it is gone with the process, and others cannot be in its place before it is.
        name = f"dopd-{secrets.token_hex(16)}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(abstract(name))
            listener.listen(HANDSHAKES_MAX)
            endpoint = Endpoint(self.name, name, host_id())
        except OSError:
            listener.close()
            raise
        super().__init__(listener, endpoint, identity, pool, events)

    def _open(self, address: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Waits for nothing: a full backlog is EAGAIN, and asked again.
            sock.setblocking(False)
            sock.connect(abstract(address))
        except BlockingIOError:
            sock.close()
            raise
        except (OSError, ValueError) as error:
            sock.close()
            # Nobody listens, or a sandbox forbids it: other ways may be open.
            raise LinkRefusedError(f"{address!r}: {error}") from error
        return sock

    def _refusal_of_user(self, sock: socket.socket) -> str:
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        pid, uid, _ = CREDENTIALS.unpack(data)
        if uid != os.geteuid():
            return f"process {pid} is of user {uid}, we are of {os.geteuid()}"
        return ""

    def _own_descriptors(self) -> list[int]:
        return [self._descriptor]

    def _refusal_of(self, hello: LinkHello, descriptors: list[int]) -> str:
        if len(descriptors) != 1:
            return "hello without a memory file"
        return memory_error(descriptors[0], self._pool.page_bytes)

    def _make_link(self, sock: socket.socket, shaken: Shaken) -> StreamLink:
        label, descriptors = shaken.label, shaken.descriptors
        return ShmLink(sock, self._pool, self._events, self._forget, label, descriptors)


def abstract(name: str) -> str:
    """The address of an abstract Unix socket."""
    return "\0" + name


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
