"""What transports over stream sockets share: listening, handshakes, the set of links.

The receiving worker listens, the sending worker dials. A link is taken only from a peer that shows
the join token, the same protocol and the same KV layout. `tcp` and `shm` add how to listen and dial
and how pages travel; when to dial whom is `pairing`'s.
"""

from __future__ import annotations

import abc
import hmac
import itertools
import logging
import os
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

from dopd.errors import LinkError, LinkRefusedError
from dopd.kv.base import PagePool
from dopd.transfer import frames
from dopd.transfer.base import PROTOCOL, LinkEvents, LinkIdentity
from dopd.transfer.stream_link import LinkParts, StreamLink
from dopd.types import Endpoint, LinkHello, LinkMessage, LinkWelcome, Peer

log = logging.getLogger(__name__)

# A whole handshake, however it is cut into packets.
HANDSHAKE_S = 5.0
# Two threads each: far more peers than one worker has neighbours.
LINKS_MAX = 256
HANDSHAKES_MAX = 64
# After a failed accept: long enough not to spin while descriptors are out.
ACCEPT_RETRY_S = 0.1
# For all links to end together.
CLOSE_S = 2.0


@dataclass(frozen=True, slots=True)
class Shaken:
    """A handshake in which both ends took each other, for the link that comes of it.

    descriptors: came with the hello, and are the link's from then on. So is source: see
    `StreamTransport._source_of`.
    """

    label: str
    hello: LinkHello
    welcome: LinkWelcome
    is_listener: bool
    descriptors: list[int] = field(default_factory=list)
    source: object = None


class StreamTransport(abc.ABC):
    """All links of one worker over one kind of socket.

    endpoint: where we listen, as grants name it.
    """

    name: str

    def __init__(
        self,
        listener: socket.socket,
        endpoint: Endpoint,
        identity: LinkIdentity,
        pool: PagePool,
        events: LinkEvents,
    ) -> None:
        self.endpoint = endpoint
        self._listener = listener
        self._identity = identity
        self._pool = pool
        self._events = events
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._links: set[StreamLink] = set()
        # (worker, incarnation) of the dialling side -> newest generation and its link.
        self._accepted: dict[tuple[str, int], tuple[int, StreamLink]] = {}
        self._handshakes = threading.Semaphore(HANDSHAKES_MAX)
        self._generations = itertools.count(1)

    # What a transport does its own way

    @abc.abstractmethod
    def _open(self, address: str) -> socket.socket:
        """Connect. Raises OSError if it may work later, LinkRefusedError if it will not."""

    @abc.abstractmethod
    def _make_link(self, sock: socket.socket, shaken: Shaken) -> StreamLink:
        """A link over a connection that was shaken hands on. Its `join` may wait, this must not."""

    def _refusal_of_user(self, sock: socket.socket) -> str:
        """Why nothing is read from, or said to, the other end; empty if it may be trusted."""
        return ""

    def _own_hello(self, hello: LinkHello) -> LinkHello:
        """Our hello, with what this transport says in it."""
        return hello

    def _own_descriptors(self) -> list[int]:
        """What goes with our hello."""
        return []

    def _refusal_of(self, hello: LinkHello, descriptors: list[int]) -> str:
        """Why what came with a hello is not taken; empty if it is."""
        return ""

    def _source_of(self, hello: LinkHello, left: ExitStack) -> object:
        """What the hello gives us to read from, opened. Raises LinkError: why it is not taken.

        left: closes it if no link comes of it.
        """
        return None

    def _own_welcome(self, welcome: LinkWelcome, left: ExitStack) -> LinkWelcome:
        """Our welcome of a peer that is taken, with what this transport says in it, or its error.

        left: undoes what must not be left behind if no link comes of it.
        """
        return welcome

    # Both sides

    def start(self) -> None:
        """Take links from now on."""
        threading.Thread(target=self._accept, name=f"{self.name}-accept", daemon=True).start()

    def close(self) -> None:
        """Abort and synchronise every link, stop listening."""
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
        deadline = time.monotonic() + CLOSE_S
        for link in links:
            link.synchronise(max(0.0, deadline - time.monotonic()))

    def _link(self, sock: socket.socket, shaken: Shaken) -> StreamLink:
        sock.settimeout(None)
        link = self._make_link(sock, shaken)
        link.transport = self.name
        with self._lock:
            if self._closed.is_set():
                raise LinkError("worker ends")
            self._links.add(link)
        return link

    def _parts(self, sock: socket.socket, shaken: Shaken) -> LinkParts:
        """What `_make_link` makes it of."""
        label, descriptors = shaken.label, shaken.descriptors
        return LinkParts(sock, self._pool, self._events, self._forget, label, descriptors)

    def _join(self, link: StreamLink) -> StreamLink:
        try:
            link.join()
        except BaseException as error:
            link.abandon(str(error))
            raise
        return link

    def _forget(self, link: StreamLink) -> None:
        with self._lock:
            self._links.discard(link)
            self._accepted = {k: up for k, up in self._accepted.items() if up[1] is not link}

    # Listening side

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                # Out of descriptors, or a peer that left in the queue: both pass. Every grant
                # points here, so the listener outlives them.
                if not self._closed.wait(ACCEPT_RETRY_S):
                    log.error("data link over %s not accepted: %s", self.name, error)
                continue
            if not self._handshakes.acquire(blocking=False):
                log.warning("more than %d handshakes at once: connection refused", HANDSHAKES_MAX)
                sock.close()
                continue
            try:
                threading.Thread(
                    target=self._welcome, args=(sock,), name="link-welcome", daemon=True
                ).start()
            except RuntimeError as error:
                # Out of threads passes, too; the peer sees its connection end and dials again.
                log.error("data link over %s not accepted: %s", self.name, error)
                self._handshakes.release()
                sock.close()

    def _welcome(self, sock: socket.socket) -> None:
        try:
            link = self._shake(sock)
        except (OSError, LinkError) as error:
            log.warning("data link over %s refused: %s", self.name, error)
            sock.close()
            return
        finally:
            self._handshakes.release()
        log.info("data link %s is up", link.label)
        self._events.link_up(link, None)
        link.start()

    def _shake(self, sock: socket.socket) -> StreamLink:
        if error := self._refusal_of_user(sock):
            raise LinkError(error)
        with ExitStack() as left:
            descriptors: list[int] = []
            left.callback(_close_all, descriptors)
            hello = frames.receive_handshake(sock, HANDSHAKE_S, descriptors)
            error, source = self._refusal(hello, descriptors), None
            if not error and isinstance(hello, LinkHello):
                try:
                    source = self._source_of(hello, left)
                except LinkError as refused:
                    error = str(refused)
            own, generation = self._identity, next(self._generations)
            welcome = LinkWelcome(own.worker, own.incarnation, generation, error)
            if not error:
                welcome = self._own_welcome(welcome, left)
            frames.send_frame(sock, welcome, [])
            if welcome.error or not isinstance(hello, LinkHello):
                raise LinkError(welcome.error)
            label = f"from {hello.worker} (generation {generation}) over {self.name}"
            link = self._link(sock, Shaken(label, hello, welcome, True, descriptors, source))
            # It is the link's from here on.
            left.pop_all()
        # First: what the former one still does on our device must not hold up the new one.
        self._end_former(hello, generation, link)
        return self._join(link)

    def _end_former(self, hello: LinkHello, generation: int, link: StreamLink) -> None:
        """One link a peer: its end of the older one is down, or it would not have dialled again."""
        key = (hello.worker, hello.incarnation)
        with self._lock:
            # Two handshakes of one peer may end here in either order.
            last, newest = self._accepted.get(key, (0, None))
            stale = newest if generation > last else link
            if generation > last:
                self._accepted[key] = (generation, link)
        if stale is not None:
            stale.abort("peer dialled again")

    def _refusal(self, hello: LinkMessage, descriptors: list[int]) -> str:
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
        return self._refusal_of(hello, descriptors)

    # Dialling side

    def connect(self, peer: Peer, address: str) -> StreamLink:
        """A link to this peer, not yet started.

        Raises OSError or LinkError if it may work later, LinkRefusedError if it will not.
        """
        own = self._identity
        sock = self._open(address)
        try:
            # Before our token and our memory go there: an address may have a new holder.
            if error := self._refusal_of_user(sock):
                raise LinkRefusedError(error)
            sock.settimeout(HANDSHAKE_S)
            hello = LinkHello(
                PROTOCOL, own.worker, own.incarnation, own.layout_hash, own.join_token
            )
            hello = self._own_hello(hello)
            frames.send_frame(sock, hello, [], self._own_descriptors())
            welcome = frames.receive_handshake(sock, HANDSHAKE_S)
            if not isinstance(welcome, LinkWelcome) or welcome.error:
                raise LinkRefusedError(f"refused: {getattr(welcome, 'error', welcome)}")
            if (welcome.worker, welcome.incarnation) != (peer.worker, peer.incarnation):
                raise LinkRefusedError(f"{welcome.worker} lives at {address} now")
            label = f"to {peer.worker} (generation {welcome.generation}) over {self.name}"
            return self._join(self._link(sock, Shaken(label, hello, welcome, False)))
        except BaseException:
            sock.close()
            raise


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
