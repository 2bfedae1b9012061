"""Where link threads meet the desk: their events in, its words to links out.

A transport calls (`transfer.base.LinkEvents`) from threads of its own; the seats are asked under
the desk's lock. Pages are hashed in the link's thread and outside of the lock: a big shipment must
hold up neither the step loop nor a heartbeat. That is safe at the destination, since an exposed or
fenced page changes hands only after its link's own thread has said End or down; and at the source,
since a page that was freed meanwhile belongs to a shipment that is forgotten, hash and all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from dopd.sched import events as ev
from dopd.sched.seats import Seats
from dopd.transfer.base import START_BYTES_PER_S, Link, Transport
from dopd.types import LinkEnd, LinkState, Peer

# Rates are told with a report that goes out anyway, if one of them has changed by so much of itself
# and the last news is so old.
RATE_CHANGE = 0.25
RATE_NEWS_S = 1.0
# Of report's limit; a worker has no more links.
TOLD_MAX = 256


class Links:
    """The links of one worker. `changed` and `handle` are the desk's: its lock, an event of it.

    has_news: a link on which we ship came up or went down since the router was told.
    """

    def __init__(
        self,
        changed: threading.Condition,
        seats: Seats,
        handle: Callable[[ev.Event], None],
    ) -> None:
        self._changed = changed
        self._seats = seats
        self._handle = handle
        self._by_id: dict[int, Link] = {}
        self.has_news = False
        # Link on which we ship -> the worker at its other end.
        self._peers: dict[int, str] = {}
        self._told: list[LinkState] = []
        self._told_to = 0
        self._told_at = 0.0
        self._transport: Transport | None = None

    def set_transport(self, transport: Transport) -> None:
        """Once, before the first command: grants name its endpoints."""
        self._transport = transport
        self._seats.set_endpoints(transport.endpoints)

    # From the desk, under its lock

    def act(self, effect: ev.LinkEffect) -> None:
        """Say to a link what the seats want said; it queues."""
        match effect:
            case ev.Dial(peer):
                assert self._transport is not None
                self._transport.dial(peer)
            case ev.SendBegin(link, nonce):
                self._by_id[link].begin(nonce)
            case ev.SendGo(link, nonce, pages, first):
                self._by_id[link].go(nonce, pages, first)
            case ev.WritePages(link, nonce, first, pages):
                self._by_id[link].write(nonce, first, pages)
            case ev.SendEnd(link, end):
                self._by_id[link].end(end)
            case ev.AbortLink(link, age_s):
                if age_s >= self._by_id[link].fence_s:
                    reason = f"the source said no End for {age_s:.1f} s: a fence is overdue"
                    self._by_id[link].abort(reason)

    def bytes_per_s(self, link: int | None) -> float:
        """What a link carries; 0 if it is down."""
        found = self._by_id.get(link or 0)
        return 0.0 if found is None else found.bytes_per_s

    def take_news(self, session: int, now: float) -> list[LinkState] | None:
        """The links on which we ship, if a session is to be told of them."""
        if session != self._told_to:
            self._told, self._told_to = [], session
            self.has_news = bool(self._peers)
        is_due = bool(self._told) and now - self._told_at >= RATE_NEWS_S
        if not (self.has_news or is_due):
            return None
        states = [self._state(link, peer) for link, peer in self._peers.items()][:TOLD_MAX]
        self._told_at = now
        pairs = zip(states, self._told, strict=False)
        if not (self.has_news or any(has_changed(new, told) for new, told in pairs)):
            return None
        self._told, self.has_news = states, False
        return states

    def _state(self, link: int, peer: str) -> LinkState:
        found = self._by_id[link]
        rate = found.bytes_per_s
        is_measured = rate != START_BYTES_PER_S
        return LinkState(peer, found.transport, int(rate) if is_measured else 0)

    # From links; see transfer.base.LinkEvents

    def wants(self, peer: Peer) -> bool:
        """Whether a shipment waits for a link to this peer."""
        with self._changed:
            return self._seats.wants(peer)

    def link_up(self, link: Link, peer: Peer | None) -> None:
        """A link is up."""
        with self._changed:
            self._by_id[link.id] = link
            if peer is not None:
                self._peers[link.id] = peer.worker
                self.has_news = True
                self._handle(ev.LinkUp(link.id, peer))

    def link_down(self, link: Link) -> None:
        """A link is down and synchronised."""
        with self._changed:
            self._handle(ev.LinkDown(link.id))
            del self._by_id[link.id]
            if self._peers.pop(link.id, None) is not None:
                self.has_news = True
            self._changed.notify_all()

    def begin(self, link: Link, nonce: int) -> None:
        """A source shows a ticket."""
        with self._changed:
            self._handle(ev.Begin(link.id, nonce))

    def go(self, link: Link, nonce: int, num_pages: int, first: int = 0) -> None:
        """A destination is ready."""
        with self._changed:
            self._handle(ev.Go(link.id, nonce, num_pages, first))

    def targets(self, link: Link, nonce: int, first: int, count: int) -> list[int]:
        """Pages that a Write names. Raises LinkError if it must not land."""
        with self._changed:
            return self._seats.targets(link.id, nonce, first, count)

    def landed(self, link: Link, nonce: int, first: int, count: int) -> None:
        """A Write is in place."""
        with self._changed:
            self._handle(ev.Landed(link.id, nonce, first, count))
            found = self._seats.landed_unhashed(link.id, nonce)
        if found is not None:
            pages_hash, pages = found
            pages_hash.add(pages)

    def written(self, link: Link, nonce: int, count: int) -> None:
        """Our writes are completed."""
        with self._changed:
            found = self._seats.written_unhashed(link.id, nonce, count)
        if found is not None:
            # Before the event: after the last one, End says the checksum.
            pages_hash, pages = found
            pages_hash.add(pages)
        with self._changed:
            self._handle(ev.Written(link.id, nonce, count))

    def end(self, link: Link, end: LinkEnd) -> None:
        """The last word of a source; `landed` has hashed what came before it."""
        with self._changed:
            event = ev.EndOk(link.id, end) if end.ok else ev.EndAborted(link.id, end.nonce)
            self._handle(event)


def has_changed(new: LinkState, told: LinkState) -> bool:
    """Whether a link's rate is news."""
    return abs(new.bytes_per_s - told.bytes_per_s) > RATE_CHANGE * told.bytes_per_s
