"""The cuda_ipc transport, between processes of one user on one machine: pages go from GPU to GPU.

As `shm`, with the pool in a GPU's memory: its IPC handle comes with the source's hello. The
destination opens it for as long as the link lives, copies what a Write names on a stream of the
link's own, and lets the copies come to their end before it says that they landed. The handle is
closed after the stream has come to rest, and the link is reported down after that (T4); a device
that never says that it is done keeps link and pages for ever.

Whether a peer's memory can be read is found out in the handshake. If not, the link is refused, and
the source takes its next way.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import replace

from dopd.errors import LinkError
from dopd.kv.base import PagePool
from dopd.transfer.base import LinkEvents, LinkIdentity
from dopd.transfer.cuda import IPC_HANDLE_BYTES, UUID_BYTES, Device, Stream
from dopd.transfer.local import LocalTransport
from dopd.transfer.placed_link import PlacedLink
from dopd.transfer.rest import come_to_rest
from dopd.transfer.stream import Shaken
from dopd.transfer.stream_link import WRITE_PAGES_MAX, LinkParts
from dopd.types import LinkHello, PoolHandle

# Of one Write: no bytes of it pass through the socket, and at the speed of a device's memory it
# takes 50 us; over PCIe 3 ms, which is what a Begin of others may wait.
FRAME_BYTES = 64 << 20
# The copies of one Write. A device that is busy with steps takes milliseconds.
COPY_S = 10.0


class PeerPool:
    """A source's pool, opened for one link, and the stream on which it is read."""

    def __init__(self, device: Device, handle: PoolHandle, page_bytes: int) -> None:
        """handle: checked for its shape. Raises LinkError if it does not open, or lies."""
        self._device = device
        self._page_bytes = page_bytes
        self.num_pages = handle.num_bytes // page_bytes
        with ExitStack() as left:
            base = device.ipc_open(handle.handle)
            left.callback(device.ipc_close, base)
            # Only the driver knows: a copy from outside of it would cost us the device.
            _, size = device.address_range(base)
            if handle.offset + handle.num_bytes > size:
                raise LinkError(
                    f"pool of {handle.num_bytes} bytes at {handle.offset} of an allocation of "
                    f"{size}"
                )
            self._first = base + handle.offset
            self._stream: Stream = device.stream()
            left.callback(self._stream.close)
            self._open = left.pop_all()

    def copy(self, first: int, target: int, count: int) -> None:
        """Queue a copy of neighbours to an address of ours. Raises LinkError."""
        size = self._page_bytes
        self._stream.copy(target, self._first + first * size, count * size)

    def finish(self, within_s: float) -> bool:
        """Whether all copies came to their end in that time. Raises LinkError if one failed."""
        return self._stream.synchronise(within_s)

    def close(self) -> bool:
        """Wait until no copy is under way, then give all of it back. Whether it came to that."""
        if not come_to_rest(self._stream):
            return False
        self._open.close()
        return True


class CudaIpcLink(PlacedLink):
    """See `PlacedLink`."""

    _source: PeerPool | None = None

    def __init__(self, parts: LinkParts, source: PeerPool | None) -> None:
        """source: the link's from now on."""
        super().__init__(parts)
        self._source = source
        self._frame_pages = min(max(FRAME_BYTES // parts.pool.page_bytes, 1), WRITE_PAGES_MAX)

    def _pull(self, sources: list[int], targets: list[int]) -> None:
        source = self._source
        assert source is not None
        for start, end in self._runs(sources, targets):
            source.copy(sources[start], self._pool.address(targets[start]), end - start)
        if not source.finish(COPY_S):
            raise LinkError(f"{len(sources)} pages were not copied within {COPY_S:g} s")

    def _quiesce(self) -> bool:
        return self._source is None or self._source.close()


class CudaIpcTransport(LocalTransport):
    """See `LocalTransport`. device: where the pool is."""

    name = "cuda_ipc"

    def __init__(
        self, identity: LinkIdentity, pool: PagePool, events: LinkEvents, device: Device
    ) -> None:
        """Raises OSError; LinkError if the pool has no handle."""
        self._device = device
        own = device.ipc_handle(pool.address(0))
        num_bytes = pool.num_pages * pool.page_bytes
        if own.offset + num_bytes > own.size:
            # More than one allocation: torch's expandable segments, where these have a handle.
            raise LinkError(f"the pool of {num_bytes} bytes is not in one allocation")
        uuid = device.driver.uuid(device.ordinal)
        self._handle = PoolHandle(uuid, own.handle, own.offset, num_bytes)
        super().__init__(identity, pool, events)

    def _own_hello(self, hello: LinkHello) -> LinkHello:
        return replace(hello, pool_handle=self._handle)

    def _refusal_of(self, hello: LinkHello, descriptors: list[int]) -> str:
        if descriptors:
            return "hello with a descriptor"
        return shape_error(hello.pool_handle, self._pool.page_bytes)

    def _source_of(self, hello: LinkHello, left: ExitStack) -> PeerPool:
        handle = hello.pool_handle
        assert handle is not None, "its shape was checked"
        driver, ordinal = self._device.driver, self._device.ordinal
        peer = driver.find(handle.device_uuid)
        if peer is None:
            raise LinkError(f"GPU {handle.device_uuid.hex()} is not among those of this process")
        if not driver.can_access(ordinal, peer):
            raise LinkError(f"GPU {ordinal} has no access to the memory of GPU {peer}")
        source = PeerPool(self._device, handle, self._pool.page_bytes)
        left.callback(source.close)
        return source

    def _make_link(self, sock: socket.socket, shaken: Shaken) -> CudaIpcLink:
        source = shaken.source
        assert source is None or isinstance(source, PeerPool)
        return CudaIpcLink(self._parts(sock, shaken), source)


def shape_error(handle: PoolHandle | None, page_bytes: int) -> str:
    """Why this is no handle of a pool; empty if it may be one."""
    if handle is None:
        return "hello without a pool's handle"
    lengths = len(handle.device_uuid), len(handle.handle)
    if lengths != (UUID_BYTES, IPC_HANDLE_BYTES):
        return f"device and handle of {lengths[0]} and {lengths[1]} bytes, not 16 and 64"
    if handle.num_bytes == 0 or handle.num_bytes % page_bytes:
        return f"pool of {handle.num_bytes} bytes is not whole pages of {page_bytes}"
    return ""
