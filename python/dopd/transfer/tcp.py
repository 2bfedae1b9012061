"""The TCP transport: pages travel as the payload of their Write."""

from __future__ import annotations

import socket
import time

from dopd.errors import LinkError, LinkRefusedError
from dopd.kv.base import PagePool
from dopd.transfer import frames
from dopd.transfer.base import LinkEvents, LinkIdentity
from dopd.transfer.cuda import Device
from dopd.transfer.staging import stagers
from dopd.transfer.stream import HANDSHAKES_MAX, Shaken, StreamTransport
from dopd.transfer.stream_link import LinkParts, StreamLink
from dopd.types import Endpoint, LinkWrite

CONNECT_S = 2.0
# The kernel gives what it allows; a bandwidth-delay product of 10 Gbit/s x 3 ms.
BUFFER_BYTES = 4 << 20
# A peer that does not acknowledge, or does not read, for so long is gone.
UNACKED_MS = 5_000


class TcpLink(StreamLink):
    """See `StreamLink`."""

    def __init__(self, parts: LinkParts, device: Device | None = None) -> None:
        """device: of a pool on a GPU, whose pages go through pinned memory."""
        super().__init__(parts)
        stager = stagers(parts.pool, device)
        # The writer's, and the reader's.
        self._outgoing, self._incoming = stager(self._frame_pages), stager(self._frame_pages)

    def _write_pages(self, nonce: int, first: int, pages: list[int]) -> None:
        begun = time.monotonic()
        views = self._outgoing.outgoing(pages)
        sent = frames.send_frame(self._sock, LinkWrite(nonce, first, len(pages)), views)
        self._measure(sent, time.monotonic() - begun)
        # The kernel has its own copy now, and sends it before any End (T3).
        self._events.written(self, nonce, len(pages))

    def _land(self, write: LinkWrite, num_payload: int) -> None:
        if num_payload != write.count * self._pool.page_bytes:
            raise LinkError(
                f"{num_payload} bytes for {write.count} pages of {self._pool.page_bytes}"
            )
        pages = self._events.targets(self, write.nonce, write.first, write.count)
        most = self._incoming.pages_max
        # A peer may put more into a frame than we would.
        for part in (pages[start : start + most] for start in range(0, len(pages), most)):
            frames.receive_views(self._read_into, self._incoming.incoming(part))
            self._incoming.land(part)
        self._events.landed(self, write.nonce, write.first, write.count)

    def _quiesce(self) -> bool:
        # Both, whatever comes of the first.
        return all([self._outgoing.close(), self._incoming.close()])


class TcpTransport(StreamTransport):
    """See `StreamTransport`."""

    name = "tcp"

    def __init__(
        self,
        host: str,
        identity: LinkIdentity,
        pool: PagePool,
        events: LinkEvents,
        device: Device | None = None,
    ) -> None:
        """Listens on a port of its own choice. Raises OSError. device: that the pool is on."""
        if pool.page_bytes > frames.PAYLOAD_BYTES_MAX:
            raise LinkError(
                f"a page of {pool.page_bytes} bytes is more than the {frames.PAYLOAD_BYTES_MAX} "
                "of a frame"
            )
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, 0), family=family, backlog=HANDSHAKES_MAX)
        host, port = listener.getsockname()[:2]
        endpoint = Endpoint(self.name, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        super().__init__(listener, endpoint, identity, pool, events)
        self._staging_device = device

    def _open(self, address: str) -> socket.socket:
        host, _, port = address.rpartition(":")
        if not port.isdecimal():
            raise LinkRefusedError(f"address {address!r} of the grant is not host:port")
        return socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S)

    def _make_link(self, sock: socket.socket, shaken: Shaken) -> StreamLink:
        tune(sock)
        return TcpLink(self._parts(sock, shaken), self._staging_device)


def tune(sock: socket.socket) -> None:
    """No delays, large buffers, and an end to peers that are gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKED_MS)
