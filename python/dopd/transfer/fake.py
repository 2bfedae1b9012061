"""A transport inside of one process, for tests: who holds the network chooses what happens next.

Nothing happens by itself. Everything under way is a `Delivery`; `FakeNetwork.pending` lists those
that may come next under the contracts of `transfer.base`, and no more order than these give: writes
overtake each other and other shipments, a page is read when it lands, long after the destination
looked up where, and an aborted link lets late writes land until it is synchronised. Not
thread-safe.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from dopd.errors import LinkError
from dopd.kv.base import PagePool
from dopd.transfer.base import START_BYTES_PER_S, LinkEvents, LinkIdentity
from dopd.types import Endpoint, LinkEnd, Peer

_ids = itertools.count(1)


@dataclass(slots=True, eq=False)
class Delivery:
    """Something under way. `to`: the end that it reaches; it is dropped when that end is down.

    after: what must have happened before (contract T1).
    """

    kind: str
    to: FakeLink | None
    act: Callable[[], None] = field(repr=False)
    nonce: int = 0
    after: list[Delivery] = field(default_factory=list, repr=False)


class FakeNetwork:
    """All workers of a test, and what is under way between them."""

    def __init__(self) -> None:
        self._nodes: dict[str, FakeTransport] = {}
        self._under_way: list[Delivery] = []

    def transport(
        self, identity: LinkIdentity, pool: PagePool, events: LinkEvents
    ) -> FakeTransport:
        """A worker's transport; a worker that starts anew takes the place of its former life."""
        address = f"fake:{identity.worker}"
        node = FakeTransport(self, address, identity, pool, events)
        self._nodes[address] = node
        return node

    def pending(self) -> list[Delivery]:
        """What may happen next, oldest first."""
        waiting = set(map(id, self._under_way))
        return [d for d in self._under_way if not any(id(a) in waiting for a in d.after)]

    def deliver(self, delivery: Delivery) -> None:
        """Let it happen."""
        self._under_way.remove(delivery)
        delivery.act()

    def drop(self, delivery: Delivery) -> None:
        """Lose it. A write cannot be lost alone: cut the link instead."""
        assert delivery.kind in ("begin", "go", "end"), f"{delivery.kind} cannot be lost"
        self._under_way.remove(delivery)

    def double(self, delivery: Delivery) -> None:
        """Let it happen twice: now, and once more later."""
        assert delivery.kind in ("begin", "go", "end"), f"{delivery.kind} cannot be doubled"
        delivery.act()

    def settle(self) -> None:
        """Let everything happen, oldest first."""
        while pending := self.pending():
            self.deliver(pending[0])

    def add(self, delivery: Delivery) -> Delivery:
        """Something sets out."""
        self._under_way.append(delivery)
        return delivery

    def add_before_end(self, write: Delivery) -> None:
        """The second half of a Write: an End that waits for the first half waits for it (T1)."""
        self.add(write)
        for delivery in self._under_way:
            if (delivery.kind, delivery.to, delivery.nonce) == ("end", write.to, write.nonce):
                delivery.after = [*delivery.after, write]

    def connect(self, dialler: FakeTransport, peer: Peer) -> None:
        """The handshake: both ends up, or nothing."""
        listener = self._node_of(peer)
        if listener is None or not dialler.events.wants(peer):
            return
        if listener.identity.incarnation != peer.incarnation:
            return
        if listener.identity.layout_hash != dialler.identity.layout_hash:
            return
        source, destination = FakeLink(self, dialler), FakeLink(self, listener)
        source.other, destination.other = destination, source
        listener.events.link_up(destination, None)
        dialler.events.link_up(source, peer)

    def _node_of(self, peer: Peer) -> FakeTransport | None:
        endpoint = peer.endpoint(FakeTransport.name)
        return None if endpoint is None else self._nodes.get(endpoint.address)

    def writes_to(self, link: FakeLink, nonce: int) -> list[Delivery]:
        """Writes of a shipment that have not landed yet."""
        return [d for d in self._under_way if (d.kind, d.to, d.nonce) == ("write", link, nonce)]

    def forget(self, link: FakeLink) -> None:
        """Nothing reaches this end any more: it is synchronised."""
        self._under_way = [d for d in self._under_way if d.to is not link]


class FakeTransport:
    """See `dopd.transfer.base.Transport`."""

    name = "fake"

    def __init__(
        self,
        network: FakeNetwork,
        address: str,
        identity: LinkIdentity,
        pool: PagePool,
        events: LinkEvents,
    ) -> None:
        self.endpoints = (Endpoint(self.name, address),)
        self.identity = identity
        self.pool = pool
        self.events = events
        self.links: list[FakeLink] = []
        self._network = network

    def dial(self, peer: Peer) -> None:
        """See `Transport.dial`."""
        connect = self._network.connect
        self._network.add(Delivery("connect", None, lambda: connect(self, peer)))

    def close(self) -> None:
        """See `Transport.close`."""
        for link in list(self.links):
            link.abort("worker ends")
            link.synchronise(0)

    def crash(self) -> None:
        """The process is gone without a word; its peers see it some time later."""
        for link in list(self.links):
            link.crash()


class FakeLink:
    """One end of a connection; see `dopd.transfer.base.Link`."""

    other: FakeLink
    transport = FakeTransport.name

    def __init__(self, network: FakeNetwork, node: FakeTransport) -> None:
        self.id = next(_ids)
        self.bytes_per_s = START_BYTES_PER_S
        self.fence_s = 0.0
        self.node = node
        self._network = network
        self._is_shut = False
        self._is_down = False
        node.links.append(self)

    def begin(self, nonce: int) -> None:
        """See `Link.begin`."""
        self._send("begin", nonce, lambda to: to.node.events.begin(to, nonce))

    def go(self, nonce: int, pages: list[int], first: int = 0) -> None:
        """See `Link.go`."""
        num_pages = len(pages)
        self._send("go", nonce, lambda to: to.node.events.go(to, nonce, num_pages, first))

    def write(self, nonce: int, first: int, pages: list[int]) -> None:
        """See `Link.write`: each page travels alone."""
        for index, page in enumerate(pages, first):
            self._send("write", nonce, partial(self._aim, nonce=nonce, index=index, page=page))

    def end(self, end: LinkEnd) -> None:
        """See `Link.end`."""
        self._send("end", end.nonce, lambda to: to.node.events.end(to, end))

    def abort(self, reason: str) -> None:
        """See `Link.abort`: what is under way may still land."""
        if not self._is_shut:
            self._is_shut = True
            self._network.add(Delivery("down", None, self._go_down))

    def synchronise(self, timeout_s: float) -> bool:
        """See `Link.synchronise`."""
        if self._is_shut:
            self._go_down()
        return self._is_down

    def _send(self, kind: str, nonce: int, act: Callable[[FakeLink], None]) -> None:
        to = self.other
        if self._is_shut or to._is_down:
            return
        delivery = Delivery(kind, to, lambda: to._take(act), nonce)
        if kind == "end":
            delivery.after = self._network.writes_to(to, nonce)
        self._network.add(delivery)

    def _take(self, act: Callable[[FakeLink], None]) -> None:
        try:
            act(self)
        except LinkError as error:
            self.abort(str(error))

    def _aim(self, to: FakeLink, *, nonce: int, index: int, page: int) -> None:
        """The destination looks up where a Write goes; its bytes come some time later."""
        (target,) = to.node.events.targets(to, nonce, index, 1)
        land = partial(self._land, nonce=nonce, index=index, page=page, target=target)
        landing = Delivery("write", to, lambda: to._take(land), nonce)
        self._network.add_before_end(landing)

    def _land(self, to: FakeLink, *, nonce: int, index: int, page: int, target: int) -> None:
        to.node.pool.page(target)[:] = self.node.pool.page(page)
        to.node.events.landed(to, nonce, index, 1)
        if not self._is_down:
            self._network.add(Delivery("written", self, lambda: self._complete(nonce), nonce))

    def _complete(self, nonce: int) -> None:
        self.node.events.written(self, nonce, 1)

    def crash(self) -> None:
        """This end is gone, and nobody is left to be told."""
        self._leave()

    def _go_down(self) -> None:
        if not self._is_down:
            self._leave()
            self.node.events.link_down(self)

    def _leave(self) -> None:
        self._is_shut = self._is_down = True
        self._network.forget(self)
        self.node.links.remove(self)
        # The other end sees it some time later.
        other = self.other
        if not other._is_down:
            self._network.add(Delivery("down", None, other._go_down))
