"""The TCP transport: the receiving worker listens, the sending worker dials.

Owns the listening socket, the handshakes and the set of links. A link is taken only from a peer
that shows the join token, the same protocol and the same KV layout.
"""

from __future__ import annotations

import hmac
import itertools
import logging
import random
import socket
import threading

from dopd.errors import LinkError, LinkRefusedError
from dopd.kv.base import PagePool
from dopd.transfer import frames
from dopd.transfer.base import PROTOCOL, LinkEvents, LinkIdentity
from dopd.transfer.tcp_link import TcpLink
from dopd.types import LinkHello, LinkWelcome, Peer

log = logging.getLogger(__name__)

HANDSHAKE_S = 5.0
CONNECT_S = 2.0
BACKOFF_MIN_S, BACKOFF_MAX_S = 0.05, 2.0
# Two threads each: far more peers than one worker has neighbours.
LINKS_MAX = 256
HANDSHAKES_MAX = 64
# After a failed accept: long enough not to spin while descriptors are out.
ACCEPT_RETRY_S = 0.1
# The kernel gives what it allows; a bandwidth-delay product of 10 Gbit/s x 3 ms.
BUFFER_BYTES = 4 << 20
# A peer that does not acknowledge, or does not read, for so long is gone.
UNACKED_MS = 5_000
CLOSE_S = 2.0


class TcpTransport:
    """See `dopd.transfer.base.Transport`."""

    name = "tcp"

    def __init__(
        self, host: str, identity: LinkIdentity, pool: PagePool, events: LinkEvents
    ) -> None:
        assert pool.page_bytes <= frames.PAYLOAD_BYTES_MAX, "a page must fit into a frame"
        self._identity = identity
        self._pool = pool
        self._events = events
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=HANDSHAKES_MAX)
        host, port = self._listener.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._links: set[TcpLink] = set()
        # (worker, incarnation) of the dialling side -> newest generation and its link.
        self._accepted: dict[tuple[str, int], tuple[int, TcpLink]] = {}
        # Peers that a thread dials now -> somebody asked again meanwhile.
        self._dialling: dict[Peer, bool] = {}
        self._handshakes = threading.Semaphore(HANDSHAKES_MAX)
        self._generations = itertools.count(1)

    def start(self) -> None:
        """Take links from now on."""
        threading.Thread(target=self._accept, name="link-accept", daemon=True).start()

    def dial(self, peer: Peer) -> None:
        """See `Transport.dial`."""
        with self._lock:
            if self._closed.is_set():
                return
            if peer in self._dialling:
                self._dialling[peer] = True
                return
            self._dialling[peer] = False
        threading.Thread(target=self._dial, args=(peer,), name="link-dial", daemon=True).start()

    def close(self) -> None:
        """See `Transport.close`."""
        if self._closed.is_set():
            return
        self._closed.set()
        # A thread that waits in accept() does not notice close() alone.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            links = list(self._links)
        for link in links:
            link.abort("worker ends")
        for link in links:
            link.synchronise(CLOSE_S)

    # Listening side

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                # Out of descriptors, or a peer that left in the queue: both pass. Every grant
                # points here, so the listener outlives them.
                if not self._closed.wait(ACCEPT_RETRY_S):
                    log.error("data link not accepted: %s", error)
                continue
            if not self._handshakes.acquire(blocking=False):
                log.warning("more than %d handshakes at once: connection refused", HANDSHAKES_MAX)
                sock.close()
                continue
            threading.Thread(
                target=self._welcome, args=(sock,), name="link-welcome", daemon=True
            ).start()

    def _welcome(self, sock: socket.socket) -> None:
        try:
            link = self._shake(sock)
        except (OSError, LinkError) as error:
            log.warning("data link refused: %s", error)
            sock.close()
            return
        finally:
            self._handshakes.release()
        self._events.link_up(link, None)
        link.start()

    def _shake(self, sock: socket.socket) -> TcpLink:
        sock.settimeout(HANDSHAKE_S)
        hello = frames.receive_handshake(sock)
        error = self._refusal(hello)
        own = self._identity
        generation = next(self._generations)
        welcome = LinkWelcome(own.worker, own.incarnation, generation, error)
        frames.send_frame(sock, welcome, [])
        if error or not isinstance(hello, LinkHello):
            raise LinkError(error)
        label = f"from {hello.worker} (generation {generation})"
        link = self._link(sock, label)
        key = (hello.worker, hello.incarnation)
        with self._lock:
            # Two handshakes of one peer may end here in either order.
            last, newest = self._accepted.get(key, (0, None))
            stale = newest if generation > last else link
            if generation > last:
                self._accepted[key] = (generation, link)
        if stale is not None:
            # The peer's end of it is down, or it would not have dialled again.
            stale.abort("peer dialled again")
        return link

    def _refusal(self, hello: object) -> str:
        """Why the peer may not write to us; empty if it may. The token is not compared in haste."""
        own = self._identity
        if not isinstance(hello, LinkHello):
            return f"{type(hello).__name__} instead of hello"
        if not hmac.compare_digest(hello.join_token.encode(), own.join_token.encode()):
            return f"join token of {hello.worker!r} is wrong"
        if hello.protocol != PROTOCOL:
            return f"link protocol {hello.protocol}, here {PROTOCOL}"
        if hello.layout_hash != own.layout_hash:
            return f"KV layout {hello.layout_hash:#x} of {hello.worker}, here {own.layout_hash:#x}"
        with self._lock:
            if len(self._links) >= LINKS_MAX:
                return f"{LINKS_MAX} links are up already"
        return ""

    # Dialling side

    def _dial(self, peer: Peer) -> None:
        is_refused = False
        try:
            link = self._connect_while_wanted(peer)
            if link is not None:
                self._events.link_up(link, peer)
                link.start()
        except LinkRefusedError as error:
            is_refused = True
            log.warning("data link to %s: %s", peer.worker, error)
        finally:
            with self._lock:
                is_asked_again = self._dialling.pop(peer)
        # A shipment may have asked just when we gave up, or when the link was down again.
        if is_asked_again and not is_refused and self._events.wants(peer):
            self.dial(peer)

    def _connect_while_wanted(self, peer: Peer) -> TcpLink | None:
        backoff_s = BACKOFF_MIN_S
        while self._events.wants(peer) and not self._closed.is_set():
            try:
                return self._connect(peer)
            except LinkRefusedError:
                raise
            except (OSError, LinkError) as error:
                log.info("data link to %s: %s", peer.worker, error)
            self._closed.wait(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
        return None

    def _connect(self, peer: Peer) -> TcpLink:
        endpoint = peer.endpoint(self.name)
        address = "" if endpoint is None else endpoint.address
        host, _, port = address.rpartition(":")
        if not port.isdecimal():
            raise LinkRefusedError(f"address {address!r} of the grant is not host:port")
        own = self._identity
        sock = socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S)
        try:
            sock.settimeout(HANDSHAKE_S)
            hello = LinkHello(
                PROTOCOL, own.worker, own.incarnation, own.layout_hash, own.join_token
            )
            frames.send_frame(sock, hello, [])
            welcome = frames.receive_handshake(sock)
            if not isinstance(welcome, LinkWelcome) or welcome.error:
                raise LinkRefusedError(f"refused: {getattr(welcome, 'error', welcome)}")
            if (welcome.worker, welcome.incarnation) != (peer.worker, peer.incarnation):
                raise LinkRefusedError(f"{welcome.worker} lives at {address} now")
            return self._link(sock, f"to {peer.worker} (generation {welcome.generation})")
        except BaseException:
            sock.close()
            raise

    def _link(self, sock: socket.socket, label: str) -> TcpLink:
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKED_MS)
        link = TcpLink(sock, self._pool, self._events, self._forget, label)
        with self._lock:
            self._links.add(link)
        return link

    def _forget(self, link: TcpLink) -> None:
        with self._lock:
            self._links.discard(link)
            self._accepted = {k: up for k, up in self._accepted.items() if up[1] is not link}
