"""Which transport joins two workers, and the dialling of it. All links of a worker begin here.

A grant names the ways into its holder's pool, best first. The source takes the first that it speaks
too and that reaches it from here. If that way is refused, or fails several times on end, which is
how a sandbox refuses, the next one is tried, and taken at once for REFUSED_S.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

from dopd.errors import LinkError, LinkRefusedError
from dopd.transfer.base import LinkEvents
from dopd.transfer.stream import StreamTransport
from dopd.transfer.stream_link import StreamLink
from dopd.types import Endpoint, Peer

log = logging.getLogger(__name__)

BACKOFF_MIN_S, BACKOFF_MAX_S = 0.05, 2.0
# Of a way that is not the last: within half a second, which the router's hand-off timer leaves.
TRIES_MAX = 4
# Ways that were refused, each of one life of one peer. Past this they are tried anew.
REFUSED_MAX = 1024
# What refused may have been out of memory or of links, once.
REFUSED_S = 300.0


class Transports:
    """See `dopd.transfer.base.Transport`: several of them as one, best first.

    Raises LinkError if there is none.
    """

    def __init__(
        self,
        transports: Sequence[StreamTransport],
        events: LinkEvents,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not transports:
            raise LinkError("no transport is left")
        self._transports = {transport.name: transport for transport in transports}
        self._events = events
        self._clock = clock
        self._lock = threading.Lock()
        self._closed = threading.Event()
        # Peers that a thread dials now -> somebody asked again meanwhile.
        self._dialling: dict[Peer, bool] = {}
        # Way -> when it was refused.
        self._refused: dict[tuple[Peer, Endpoint], float] = {}

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """See `Transport.endpoints`."""
        return tuple(transport.endpoint for transport in self._transports.values())

    def start(self) -> None:
        """Take links from now on."""
        for transport in self._transports.values():
            transport.start()

    def dial(self, peer: Peer) -> None:
        """See `Transport.dial`."""
        with self._lock:
            if self._closed.is_set():
                return
            if peer in self._dialling:
                self._dialling[peer] = True
                return
            self._dialling[peer] = False
        thread = threading.Thread(target=self._dial, args=(peer,), name="link-dial", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            # Out of threads: this hand-off times out, and the next one asks again.
            log.error("data link to %s: %s", peer.worker, error)
            with self._lock:
                del self._dialling[peer]

    def close(self) -> None:
        """See `Transport.close`."""
        self._closed.set()
        for transport in self._transports.values():
            transport.close()

    def _dial(self, peer: Peer) -> None:
        refusal: LinkRefusedError | None = None
        try:
            link = self._connect_while_wanted(peer)
            if link is not None:
                log.info("data link %s is up", link.label)
                self._events.link_up(link, peer)
                link.start()
        except LinkRefusedError as error:
            refusal = error
        finally:
            with self._lock:
                is_asked_again = self._dialling.pop(peer)
        if refusal is not None:
            log.warning("data link to %s: %s", peer.worker, refusal)
        # A shipment may have asked just when we gave up, or when the link was down again.
        elif is_asked_again and self._events.wants(peer):
            self.dial(peer)

    def _connect_while_wanted(self, peer: Peer) -> StreamLink | None:
        backoff_s, failures = BACKOFF_MIN_S, 0
        ways = self._ways(peer)
        while self._events.wants(peer) and not self._closed.is_set():
            transport, endpoint = ways[0]
            try:
                return transport.connect(peer, endpoint.address)
            except (OSError, LinkError) as error:
                is_refused = isinstance(error, LinkRefusedError)
                if is_refused and len(ways) == 1:
                    raise
                failures += 1
                name = endpoint.transport
                if len(ways) > 1 and (is_refused or failures == TRIES_MAX):
                    ways, failures = ways[1:], 0
                    text = "data link to %s over %s: %s; %s from now on"
                    log.warning(text, peer.worker, name, error, ways[0][1].transport)
                    self._note_refused(peer, endpoint)
                    continue
                log.info("data link to %s over %s: %s", peer.worker, name, error)
            self._closed.wait(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
        return None

    def _ways(self, peer: Peer) -> list[tuple[StreamTransport, Endpoint]]:
        """Best first. Raises LinkRefusedError if there is none."""
        ways = []
        for endpoint in peer.endpoints:
            transport = self._transports.get(endpoint.transport)
            # A way that says nothing of hosts is open to all of them.
            if transport is not None and endpoint.host in ("", transport.endpoint.host):
                ways.append((transport, endpoint))
        if not ways:
            theirs = ", ".join(f"{e.transport} {e.address}" for e in peer.endpoints)
            raise LinkRefusedError(f"none of its ways ({theirs}) can be dialled from here")
        # The last one is always tried: it may be the peer's only one, or work by now.
        return [way for way in ways[:-1] if not self._is_refused(peer, way[1])] + ways[-1:]

    def _is_refused(self, peer: Peer, endpoint: Endpoint) -> bool:
        at = self._refused.get((peer, endpoint))
        return at is not None and self._clock() - at < REFUSED_S

    def _note_refused(self, peer: Peer, endpoint: Endpoint) -> None:
        with self._lock:
            if len(self._refused) >= REFUSED_MAX:
                self._refused.clear()
            self._refused[peer, endpoint] = self._clock()
