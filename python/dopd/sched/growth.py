"""Pages for sequences that outgrow theirs, and who gives theirs up if there are none.

Called by the desk under its lock, between planning a step and computing it. An Open reserves what
its router expects to be needed; nobody knows how long an answer gets. The router counts, and leaves
room for growth: a preemption is the safety net, and costs a replay.
"""

from __future__ import annotations

from dopd.errors import AccountingError
from dopd.kv.layout import pages_for
from dopd.sched import events as ev
from dopd.sched.batch import Batch, prefill_order
from dopd.sched.events import State, is_stepping
from dopd.sched.seats import Seat, Seats
from dopd.sched.sequence import Sequence


class Growth:
    """Who needs pages before the next step: noted when the last position is computed, so that no
    step has to look at each that decodes."""

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self._full: dict[Sequence, None] = {}

    def note(self, sequence: Sequence) -> None:
        """It joins, or was computed to the end of its pages: it cannot decode before it has more.
        Others are noted in vain."""
        room = len(sequence.pages) * self._seats.page_size
        if sequence.computed > room:
            raise AccountingError(f"{sequence} is out of pages")
        if sequence.computed == room:
            self._full[sequence] = None

    def forget(self, sequence: Sequence) -> None:
        """It takes part in steps no more."""
        self._full.pop(sequence, None)

    def grow(self, batch: Batch) -> ev.Scrub | Seat | None:
        """Give each row's sequence the pages that this step fills. Returns those that must be
        zeroed before the step, or None; or else, if there are too few, the seat to preempt before
        the step is planned anew, and nothing has changed."""
        seats, page_size = self._seats, self._seats.page_size
        needy: list[tuple[Sequence, int]] = []
        if batch.num_decode:
            needy = [(sequence, 1) for sequence in self._full if sequence.is_decoding]
        prompts = slice(batch.num_decode, None)
        for sequence, row in zip(batch.sequences[prompts], batch.rows[prompts], strict=True):
            end = sequence.computed + len(row.tokens)
            missing = pages_for(end, page_size) - len(sequence.pages)
            if missing > 0:
                needy.append((sequence, missing))
        if not needy:
            return None
        pages = seats.pages.allocate(sum(num_pages for _, num_pages in needy))
        if pages is None:
            return _least(seats)
        dirty: list[int] = []
        for sequence, num_pages in needy:
            self._full.pop(sequence, None)
            taken, pages = pages[:num_pages], pages[num_pages:]
            dirty += seats.owners.claim(taken, sequence.tenant, seats.scrub)
            # In place: the sequence's row holds the same list.
            sequence.pages += taken
        return ev.Scrub(dirty) if dirty else None


def _least(seats: Seats) -> Seat:
    """The seat that goes: of the least urgent, the one that came last. So whoever came first of the
    most urgent always gets on, and with it all others in their turn.

    Not chosen: a destination that a peer may write, since its pages would be fenced and not free;
    a source whose last page is on its way.
    """
    return max(
        (
            seat
            for seat in seats.by_slot.values()
            if seat.state is State.RESERVED or is_stepping(seat.state)
        ),
        key=lambda seat: prefill_order(seat.sequence),
    )
