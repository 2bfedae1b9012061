"""The table "Seat at a worker" of handoff.md section 4, cell by cell. Hold `TABLE` beside it.

A cell is a function of (table, seat, event). It changes the seat, and emits effects; it decides
nothing that the table does not say. `stay` is `=`, `ignore` is `-`, `wrong` is `!`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dopd.errors import ProtocolError
from dopd.sched import events as ev
from dopd.sched.events import State, is_stepping
from dopd.sched.limits import open_error
from dopd.sched.owners import ANYBODY
from dopd.sched.sequence import tokens_hash
from dopd.types import Close, CloseReason, Compute, LinkEnd, Open, Peer, Send

if TYPE_CHECKING:
    from dopd.sched.seats import Seat, Seats

Cell = Callable[..., None]

RETRY_MS = 20
"""Hint of a refusal: about one decode step, after which pages may be free."""


def ignore(seats: Seats, seat: Seat | None, event: object) -> None:
    """`-`: harmless, explored."""


def stay(seats: Seats, seat: Seat, event: object) -> None:
    """`=`: nothing changes."""


def wrong(seats: Seats, seat: Seat | None, event: object) -> None:
    """`!`: cannot happen between correct peers."""
    where = "no seat" if seat is None else f"slot {seat.slot} in {seat.state.name}"
    raise ProtocolError(f"{event} is not allowed for {where}")


# Open


def open_(seats: Seats, seat: None, event: Open) -> None:
    """Pages? RUN, or RESERVED + opened; else closed{refused}."""
    if (broken := open_error(event, seats.limits)) is not None:
        seats.emit(ev.Closed(event.slot, CloseReason.ERROR, broken))
        return
    chain = None if seats.is_full() else seats.prefixes.chain(event)
    found = [] if chain is None else seats.prefixes.begin(chain, event)
    pages = None if seats.is_full() else seats.pages.allocate(event.pages - len(found))
    if pages is None:
        seats.pages.free(found)
        seats.emit(ev.Closed(event.slot, CloseReason.REFUSED, seats.refusal(event), RETRY_MS))
        return
    if dirty := seats.owners.claim(pages, event.tenant, seats.scrub):
        seats.emit(ev.Scrub(dirty))
    made = seats.add(event, found + pages, chain, len(found))
    if isinstance(event.kind, Compute):
        made.state = State.RUN
        if found:
            tokens = min(made.sequence.computed, event.prompt_tokens)
            seats.emit(ev.Reused(event.slot, tokens))
        seats.emit(ev.Joins(made.sequence))
    else:
        made.state = State.RESERVED
        seats.emit(ev.Opened(event.slot, seats.grant(made)))


# Send{grant}


def want(seats: Seats, seat: Seat, event: Send) -> None:
    """WANT, and on to BEGUN at once if the link is up."""
    assert event.grant is not None
    seats.set_shipment(seat, event.grant)
    seat.state = State.WANT
    peer = Peer.of(event.grant)
    link = seats.link_to(peer)
    if link is None:
        seats.emit(ev.Dial(peer))
    else:
        begin(seats, seat, ev.LinkUp(link, peer))


def reship(seats: Seats, seat: Seat, event: Send) -> None:
    """End{aborted} for the old shipment, then WANT the new one."""
    unship(seats, seat, event)
    want(seats, seat, event)


def rewant(seats: Seats, seat: Seat, event: Send) -> None:
    """The first destination is given up after End: steps again, and ship anew."""
    resume(seats, seat, event)
    want(seats, seat, event)


# Send{none}, link down


def forget(seats: Seats, seat: Seat, event: object) -> None:
    """The shipment has not begun to write: RUN, without a word to the peer."""
    seats.clear_shipment(seat)
    seat.state = State.RUN


def unship(seats: Seats, seat: Seat, event: object) -> None:
    """Forget the shipment; End{aborted}; RUN."""
    shipment = seat.shipment
    assert shipment is not None and shipment.link is not None
    if not isinstance(event, ev.LinkDown):
        seats.emit(ev.SendEnd(shipment.link, LinkEnd(shipment.grant.nonce, ok=False)))
    resume(seats, seat, event)


def resume(seats: Seats, seat: Seat, event: object) -> None:
    """RUN; steps again if it was frozen."""
    if seat.state in (State.FROZEN, State.SENT):
        seats.emit(ev.Joins(seat.sequence))
    forget(seats, seat, event)


# Close, session lost, last token made, preempted. A lost session closes silently.


def free(seats: Seats, seat: Seat, event: object) -> None:
    """Pages FREE at once, but for those that others share; no peer can reach them."""
    leave(seats, seat)
    seats.groups.leave(seat.sequence)
    seats.pages.free(seat.sequence.pages)
    gone(seats, seat, event)


def fence(seats: Seats, seat: Seat, event: object) -> None:
    """A peer was told these pages: FENCED until its End, or the link is down and synchronised."""
    seats.set_fence(seat)
    gone(seats, seat, event)


def cancel(seats: Seats, seat: Seat, event: object) -> None:
    """End{aborted}, then free, even while a transport still reads the pages.

    Without End ok nobody attends to what arrives.
    """
    unship(seats, seat, event)
    free(seats, seat, event)


def leave(seats: Seats, seat: Seat) -> None:
    """Out of the batch, if it is in it."""
    if is_stepping(seat.state):
        seats.emit(ev.Leaves(seat.sequence))


def gone(seats: Seats, seat: Seat, event: object) -> None:
    """The seat is no more; tell the router, except in a lost session."""
    seats.remove(seat)
    closed = seats.closed_by(seat, event)
    if closed is not None:
        seats.emit(closed)


# Begin, Go


def begin(seats: Seats, seat: Seat, event: ev.LinkUp) -> None:
    """WANT: show the ticket; BEGUN."""
    assert seat.shipment is not None
    if Peer.of(seat.shipment.grant) != event.peer:
        return
    seat.shipment.link = event.link
    seat.state = State.BEGUN
    seats.emit(ev.SendBegin(event.link, seat.shipment.grant.nonce))


def go(seats: Seats, seat: Seat, event: ev.Begin) -> None:
    """RESERVED: bind the link, name our pages but for those from the cache, which nobody writes;
    EXPOSED. Whose bytes come, only End ok tells."""
    own = seat.sequence.pages[seat.first :]
    seats.owners.note(own, ANYBODY)
    seat.link = event.link
    seat.state = State.EXPOSED
    seats.emit(ev.SendGo(event.link, event.nonce, own, seat.first))


def no_go(seats: Seats, seat: Seat | None, event: ev.Go) -> None:
    """No such shipment: End{aborted}, so that the destination need not wait for its fence timer."""
    seats.emit(ev.SendEnd(event.link, LinkEnd(event.nonce, ok=False)))


def going(seats: Seats, seat: Seat, event: ev.Go) -> None:
    """BEGUN: GOING; what is computed already travels at once."""
    assert seat.shipment is not None
    if seat.shipment.link != event.link:
        no_go(seats, seat, event)
        return
    seat.shipment.grant_pages(event.first, event.num_pages)
    seat.state = State.GOING
    write(seats, seat, event)


# Write, End at the destination


def mark(seats: Seats, seat: Seat, event: ev.Landed) -> None:
    """EXPOSED: these pages are in place."""
    seat.landed[event.first : event.first + event.count] = b"\1" * event.count


def check(seats: Seats, seat: Seat, event: ev.EndOk) -> None:
    """All pages here, tokens those of this request: RUN + arrived; else free, closed{lost}."""
    end, sequence = event.end, seat.sequence
    error = seats.end_error(seat, end)
    if error is not None:
        lost(seats, seat, event, error)
        return
    sequence.adopt(end.tokens)
    seats.owners.note(sequence.pages, sequence.tenant)
    seats.prefixes.keep(sequence)
    seat.link = None
    seats.forget_import(seat)
    seat.state = State.RUN
    seats.emit(ev.Joins(sequence))
    seats.emit(ev.Arrived(seat.slot, end.pos, end.tokens[seat.have :]))


def lost(seats: Seats, seat: Seat, event: object, message: str = "source gave up") -> None:
    """No more writes can come (T1, or synchronised): free; closed{lost}."""
    seats.pages.free(seat.sequence.pages)
    seats.remove(seat)
    seats.emit(ev.Closed(seat.slot, CloseReason.LOST, message))


def cutoff(seats: Seats, seat: Seat, event: ev.LinkDown) -> None:
    """The link is down and synchronised."""
    lost(seats, seat, event, "data link is down")


# Pages travel


def write(seats: Seats, seat: Seat, event: object) -> None:
    """GOING: write every page that is full and not yet issued; never the page in use."""
    write_up_to(seats, seat, seat.sequence.computed // seats.page_size)


def write_up_to(seats: Seats, seat: Seat, num_pages: int) -> None:
    """Issue pages up to num_pages; unship if the destination reserved fewer."""
    shipment = seat.shipment
    assert shipment is not None and shipment.link is not None
    if num_pages > shipment.granted:
        unship(seats, seat, None)
        return
    first = shipment.issued
    if num_pages > first:
        shipment.issued = num_pages
        pages = seat.sequence.pages[first:num_pages]
        seats.emit(ev.WritePages(shipment.link, shipment.grant.nonce, first, pages))


def freeze(seats: Seats, seat: Seat, event: ev.Boundary) -> None:
    """GOING, decoding, and the rest is written within one decode step: FROZEN, write the rest.

    The rest is one page, or so little that a step more would not make it less.
    """
    shipment, sequence = seat.shipment, seat.sequence
    assert shipment is not None
    if not sequence.is_decoding:
        return
    num_pages = sequence.pages_used(seats.page_size)
    left = num_pages - shipment.written
    if left > 1 and left * seats.page_bytes > event.budget_bytes:
        return
    leave(seats, seat)
    seat.state = State.FROZEN
    write_up_to(seats, seat, num_pages)
    if seat.state is State.FROZEN:
        end(seats, seat, event)


def wrote(seats: Seats, seat: Seat, event: ev.Written) -> None:
    """GOING: the transport is done with these pages."""
    assert seat.shipment is not None
    seat.shipment.written += event.count


def finish(seats: Seats, seat: Seat, event: ev.Written) -> None:
    """FROZEN: the same, and End if these were the last ones."""
    wrote(seats, seat, event)
    end(seats, seat, event)


def end(seats: Seats, seat: Seat, event: object) -> None:
    """FROZEN and all writes completed: End ok, while we still hold the pages; SENT."""
    shipment, sequence = seat.shipment, seat.sequence
    assert shipment is not None and shipment.link is not None
    if shipment.written < shipment.issued:
        return
    word = LinkEnd(
        nonce=shipment.grant.nonce,
        ok=True,
        pages=shipment.issued,
        pos=len(sequence.answer),
        tokens=list(sequence.answer),
        tokens_hash=tokens_hash(sequence.prompt_hash, sequence.answer),
        checksum=None if shipment.hash is None else shipment.hash.value(),
    )
    seat.state = State.SENT
    seats.emit(ev.SendEnd(shipment.link, word))


# fmt: off
TABLE: dict[type, tuple[Cell, ...]] = {
    #                NONE    RESERV  EXPOSE  RUN     WANT    BEGUN   GOING   FROZEN  SENT
    Open:           (open_,  wrong,  wrong,  wrong,  wrong,  wrong,  wrong,  wrong,  wrong),
    Send:           (ignore, ignore, ignore, want,   want,   want,   reship, reship, rewant),
    ev.Stay:        (ignore, ignore, ignore, stay,   forget, forget, unship, unship, resume),
    Close:          (ignore, free,   fence,  free,   free,   free,   cancel, cancel, free),
    ev.SessionLost: (ignore, free,   fence,  free,   free,   free,   cancel, cancel, free),
    ev.LinkUp:      (ignore, stay,   stay,   stay,   begin,  stay,   stay,   stay,   stay),
    ev.Begin:       (ignore, go,     ignore, ignore, ignore, ignore, ignore, ignore, ignore),
    ev.Go:          (no_go,  no_go,  no_go,  no_go,  no_go,  going,  ignore, ignore, ignore),
    ev.Landed:      (wrong,  wrong,  mark,   wrong,  wrong,  wrong,  wrong,  wrong,  wrong),
    ev.EndOk:       (ignore, ignore, check,  ignore, ignore, ignore, ignore, ignore, ignore),
    ev.EndAborted:  (ignore, ignore, lost,   ignore, ignore, ignore, ignore, ignore, ignore),
    ev.LinkDown:    (ignore, stay,   cutoff, stay,   stay,   forget, unship, unship, stay),
    ev.Written:     (ignore, ignore, ignore, ignore, ignore, ignore, wrote,  finish, ignore),
    ev.Computed:    (ignore, ignore, ignore, stay,   stay,   stay,   write,  ignore, ignore),
    ev.Boundary:    (ignore, ignore, ignore, stay,   stay,   stay,   freeze, end,    ignore),
    ev.Finished:    (ignore, ignore, ignore, free,   free,   free,   cancel, wrong,  wrong),
    ev.Dropped:     (ignore, free,   fence,  free,   free,   free,   cancel, wrong,  wrong),
}
# fmt: on
