"""The seats of one worker: a pure state machine. Events in, effects out; no thread, no clock.

Owns every seat, every page state and every fence. `worker/desk.py` feeds it under one lock and
carries the effects out. The cells are in `cells.py`; the tables they make up are "Seat at a
worker", "Page" and "Session" of handoff.md section 4.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dopd.errors import LinkError, ProtocolError
from dopd.kv.layout import pages_for
from dopd.sched import events as ev
from dopd.sched.cells import TABLE
from dopd.sched.chain import Chain
from dopd.sched.checksum import PagesHash, checksum_error
from dopd.sched.events import State
from dopd.sched.groups import PromptGroups
from dopd.sched.limits import SeatLimits
from dopd.sched.owners import PageOwners
from dopd.sched.pages import PageAllocator
from dopd.sched.prefix import PrefixCache
from dopd.sched.sequence import Sequence, tokens_hash
from dopd.types import (
    Close,
    CloseReason,
    Compute,
    Endpoint,
    Grant,
    Import,
    KvScrub,
    LinkEnd,
    Open,
    Peer,
    Send,
)

FENCE_S = 0.5
"""Age at which a fence makes us abort its link: several times a hand-off, far below the lease."""


@dataclass(slots=True, eq=False)
class Shipment:
    """A source's half of a hand-off.

    link: bound at Begin. granted: pages that Go named.
    issued, written: pages given to the transport, and completed by it.
    hash: of the pages written; None: the session has no KV check.
    """

    grant: Grant
    hash: PagesHash | None = field(repr=False)
    link: int | None = None
    granted: int = 0
    issued: int = 0
    written: int = 0

    def grant_pages(self, first: int, num_pages: int) -> None:
        """Go named so many pages from `first` on: the ones before are there, and count as
        written."""
        self.issued = self.written = first
        self.granted = first + num_pages
        if self.hash is not None:
            self.hash.num_pages = first


@dataclass(slots=True, eq=False)
class Seat:
    """A request's place at this worker. Written by cells only.

    nonce, link, landed, hash, have: of an import; landed has one byte a page, 1 if it is in place;
        hash covers the first of those that arrive, None: the session has no KV check.
    first: pages from the cache that it began with.
    shipment: of a source in WANT .. SENT.
    """

    slot: int
    sequence: Sequence
    state: State = State.NONE
    have: int = 0
    first: int = 0
    nonce: int = 0
    link: int | None = None
    landed: bytearray = field(default_factory=bytearray, repr=False)
    hash: PagesHash | None = field(default=None, repr=False)
    shipment: Shipment | None = None


@dataclass(slots=True, eq=False)
class Fence:
    """Pages that nobody owns and that one shipment on one link may still write, as its page
    `first` and those behind."""

    link: int
    pages: list[int] = field(repr=False)
    since: float
    first: int = 0


class Seats:
    """All seats, by slot and by nonce. Not thread-safe: the caller holds the lock."""

    def __init__(self, limits: SeatLimits, pages: PageAllocator, draw: Callable[[], int]) -> None:
        self.limits = limits
        self.pages = pages
        self.owners = PageOwners(pages.num_pages)
        self.scrub = KvScrub.NEVER
        self.page_size = limits.page_size
        self.page_bytes = limits.page_bytes
        self.draining = False
        self.by_slot: dict[int, Seat] = {}
        self.fences: dict[int, Fence] = {}
        self._imports: dict[int, Seat] = {}
        self._shipments: dict[int, Seat] = {}
        self.groups = PromptGroups(pages, limits.page_size)
        self.prefixes = PrefixCache(pages, limits.page_size)
        self._links: dict[Peer, int] = {}
        # Makes the hash of a shipment, as the session wants it; see `PagesHash`.
        self.new_hash: Callable[[], PagesHash | None] = lambda: None
        self._ticket = limits.ticket
        self._draw = draw
        self._arrivals = itertools.count()
        self._now = 0.0
        self._effects: list[ev.Effect] = []

    def set_endpoints(self, endpoints: tuple[Endpoint, ...]) -> None:
        """Where our grants point, best first; known once the transports listen."""
        self._ticket = dataclasses.replace(self._ticket, endpoints=endpoints)

    # Events in, effects out

    def handle(self, event: ev.Event, now: float = 0.0) -> list[ev.Effect]:
        """Let one event happen at `now` (seconds, monotonic). Returns the effects in order.

        Raises ProtocolError in a cell that cannot happen between correct peers; nothing changed.
        """
        self._now, self._effects = now, []
        row = TABLE[type(event)]
        for seat in self._seats_of(event):
            row[State.NONE if seat is None else seat.state](self, seat, event)
        self._links_and_fences(event)
        return self._effects

    def overdue(self, now: float) -> list[ev.Effect]:
        """The fence timer: links whose oldest fence has waited too long are to be aborted."""
        oldest: dict[int, float] = {}
        for fence in self.fences.values():
            oldest[fence.link] = max(now - fence.since, oldest.get(fence.link, 0.0))
        late = sorted((link, age_s) for link, age_s in oldest.items() if age_s >= FENCE_S)
        return [ev.AbortLink(link, age_s) for link, age_s in late]

    def targets(self, link: int, nonce: int, first: int, count: int) -> list[int]:
        """Where a Write lands: pages exposed or fenced under this very nonce and link.

        Raises LinkError for anything else: `no_write_on_unexposed_page`.
        """
        seat, fence = self._imports.get(nonce), self.fences.get(nonce)
        if seat is not None and seat.state is State.EXPOSED and seat.link == link:
            pages, at = seat.sequence.pages, first
        elif fence is not None and fence.link == link:
            pages, at = fence.pages, first - fence.first
        else:
            raise LinkError(f"write for shipment {nonce:#x}, which this link was not told to write")
        if count < 1 or at < 0 or at + count > len(pages):
            raise LinkError(f"write of pages {first}..{first + count} of {len(pages)}")
        if seat is not None and seat.landed.count(1, first, first + count):
            # Contract T2; and a page that is hashed, or from the cache, must not change.
            raise LinkError(f"second write of pages {first}..{first + count}")
        return pages[at : at + count]

    def landed_unhashed(self, link: int, nonce: int) -> tuple[PagesHash, list[int]] | None:
        """The hash of an import, and its next pages in order that are in place."""
        seat = self._imports.get(nonce)
        if seat is None or seat.state is not State.EXPOSED or seat.link != link:
            return None
        if seat.hash is None:
            return None
        missing = seat.landed.find(0)
        end = len(seat.landed) if missing < 0 else missing
        return seat.hash, seat.sequence.pages[seat.hash.num_pages : end]

    def written_unhashed(
        self, link: int, nonce: int, count: int
    ) -> tuple[PagesHash, list[int]] | None:
        """The hash of a shipment, and its next pages if `count` more are completed now.

        Which ones were completed does not matter: all that are issued are final.
        """
        seat = self._shipments.get(nonce)
        shipment = None if seat is None else seat.shipment
        if seat is None or shipment is None or shipment.link != link or shipment.hash is None:
            return None
        end = min(shipment.written + count, shipment.issued)
        return shipment.hash, seat.sequence.pages[shipment.hash.num_pages : end]

    def shipping(self) -> list[int]:
        """Slots of sources in WANT .. SENT: the only seats that step boundaries matter to."""
        return [seat.slot for seat in self._shipments.values()]

    def wants(self, peer: Peer) -> bool:
        """Whether a shipment still waits for a link to this peer."""
        return any(
            seat.state is State.WANT
            and seat.shipment is not None
            and Peer.of(seat.shipment.grant) == peer
            for seat in self._shipments.values()
        )

    def _seats_of(self, event: ev.Event) -> Iterator[Seat | None]:
        match event:
            case ev.SessionLost():
                return iter(list(self.by_slot.values()))
            case ev.LinkUp():
                return iter(list(self._shipments.values()))
            case ev.LinkDown(link):
                return iter([s for s in self.by_slot.values() if link_of(s) == link])
            case ev.Go(_, nonce) | ev.Written(_, nonce):
                return iter((self._shipments.get(nonce),))
            case ev.Begin() | ev.Landed() | ev.EndOk() | ev.EndAborted():
                return self._import_of(event)
            case Send():
                self._check_grant(event)
                return iter((self.by_slot.get(event.slot),))
            case _:
                return iter((self.by_slot.get(event.slot),))

    def _import_of(
        self, event: ev.Begin | ev.Landed | ev.EndOk | ev.EndAborted
    ) -> Iterator[Seat | None]:
        nonce = event.end.nonce if isinstance(event, ev.EndOk) else event.nonce
        seat = self._imports.get(nonce)
        is_end = isinstance(event, ev.EndOk | ev.EndAborted)
        if is_end and seat is not None and seat.link != event.link:
            # The End of a link that was never told these pages.
            return iter(())
        if nonce in self.fences:
            return iter(())
        return iter((seat,))

    def _check_grant(self, event: Send) -> None:
        holder = self._shipments.get(event.grant.nonce) if event.grant else None
        if holder is not None and holder.slot != event.slot:
            raise ProtocolError(f"{event} has a grant that slot {holder.slot} has already")

    def _links_and_fences(self, event: ev.Event) -> None:
        match event:
            case ev.LinkUp(link, peer):
                self._links[peer] = link
            case ev.LinkDown(link):
                self._links = {peer: up for peer, up in self._links.items() if up != link}
                for nonce in [n for n, fence in self.fences.items() if fence.link == link]:
                    self._lift(nonce)
            case ev.EndOk(link, LinkEnd(nonce=nonce)) | ev.EndAborted(link, nonce):
                if nonce in self.fences and self.fences[nonce].link == link:
                    self._lift(nonce)

    # Questions that cells ask

    def is_full(self) -> bool:
        """No Open is accepted now, whatever its size."""
        return self.draining or len(self.by_slot) >= self.limits.max_seats

    def refusal(self, event: Open) -> str:
        """Why an Open was not accepted."""
        if self.draining:
            return "worker is draining"
        if len(self.by_slot) >= self.limits.max_seats:
            return f"{len(self.by_slot)} seats of {self.limits.max_seats} are taken"
        return f"{event.pages} pages asked, {self.pages.num_available} free"

    def end_error(self, seat: Seat, end: LinkEnd) -> str | None:
        """Why what arrived must not be attended to, or None."""
        sequence = seat.sequence
        needed = pages_for(sequence.prompt_tokens + end.pos - 1, self.page_size)
        if end.pos < 1 or end.pos != len(end.tokens) or end.pos < seat.have:
            return f"{len(end.tokens)} tokens at position {end.pos}, {seat.have} were known"
        if end.pos >= sequence.limits.max_tokens:
            return f"position {end.pos} of an answer of {sequence.limits.max_tokens}"
        if sequence.prompt_tokens + end.pos >= self.limits.max_model_len:
            return f"position {end.pos}, the model takes {self.limits.max_model_len} tokens"
        if max(end.tokens) >= self.limits.vocab_size:
            return f"token id {max(end.tokens)}, the vocabulary has {self.limits.vocab_size}"
        if end.pages != needed or seat.landed.count(1, 0, needed) != needed:
            landed = seat.landed.count(1)
            return f"{landed} pages landed, {end.pages} announced, {needed} needed"
        if tokens_hash(sequence.prompt_hash, end.tokens) != end.tokens_hash:
            return "tokens_hash differs: the KV is of another sequence"
        if seat.hash is not None:
            return checksum_error(seat.hash, end)
        return None

    def link_to(self, peer: Peer) -> int | None:
        """The link to this peer that is up."""
        return self._links.get(peer)

    def closed_by(self, seat: Seat, event: object) -> ev.Closed | None:
        """The last word of a seat; None if its session is gone and nobody listens."""
        match event:
            case Close():
                return ev.Closed(seat.slot, CloseReason.ASKED)
            case ev.Finished(_, reason):
                return ev.Closed(seat.slot, reason)
            case ev.Dropped(_, reason, message):
                return ev.Closed(seat.slot, reason, message)
        return None

    # Changes that cells make

    def emit(self, effect: ev.Effect) -> None:
        """Append one effect of the event under way."""
        self._effects.append(effect)

    def add(self, event: Open, pages: list[int], chain: Chain | None, first: int) -> Seat:
        """A seat on these pages, `first` of them from the cache."""
        limits = self.limits
        sequence = Sequence.of(
            event, pages, next(self._arrivals), limits.eos_token_ids, limits.max_model_len, chain
        )
        have = event.kind.have if isinstance(event.kind, Import) else 0
        seat = self.by_slot[event.slot] = Seat(event.slot, sequence, have=have, first=first)
        if isinstance(event.kind, Compute):
            sequence.computed = first * self.page_size
            self.prefixes.keep(sequence)
        self.groups.join(sequence)
        return seat

    def grant(self, seat: Seat) -> Grant:
        """The ticket of an import seat. Its nonce dies with the process."""
        seat.nonce = self._draw()
        while seat.nonce in self._imports or seat.nonce in self.fences:
            seat.nonce = self._draw()
        self._imports[seat.nonce] = seat
        seat.landed = bytearray(len(seat.sequence.pages))
        seat.landed[: seat.first] = b"\1" * seat.first
        seat.hash = self.new_hash()
        if seat.hash is not None:
            seat.hash.num_pages = seat.first
        return dataclasses.replace(self._ticket, nonce=seat.nonce)

    def remove(self, seat: Seat) -> None:
        """Forget the seat; its pages are somebody else's business already."""
        self.forget_import(seat)
        self.clear_shipment(seat)
        del self.by_slot[seat.slot]

    def forget_import(self, seat: Seat) -> None:
        """The ticket is worth nothing any more."""
        if self._imports.get(seat.nonce) is seat:
            del self._imports[seat.nonce]

    def set_shipment(self, seat: Seat, grant: Grant) -> None:
        """A new shipment replaces the old one."""
        self.clear_shipment(seat)
        seat.shipment = Shipment(grant, self.new_hash())
        self._shipments[grant.nonce] = seat

    def clear_shipment(self, seat: Seat) -> None:
        """The seat ships nothing."""
        if seat.shipment is not None:
            del self._shipments[seat.shipment.grant.nonce]
            seat.shipment = None

    def set_fence(self, seat: Seat) -> None:
        """OWNED -> FENCED(nonce, link)."""
        assert seat.link is not None
        first, pages = seat.first, seat.sequence.pages
        self.pages.fence(pages[first:])
        self.pages.free(pages[:first])
        self.fences[seat.nonce] = Fence(seat.link, pages[first:], self._now, first)

    def _lift(self, nonce: int) -> None:
        self.pages.unfence(self.fences.pop(nonce).pages)


def link_of(seat: Seat) -> int | None:
    """The link that a seat hangs on, as destination or as source."""
    if seat.shipment is not None:
        return seat.shipment.link
    return seat.link
