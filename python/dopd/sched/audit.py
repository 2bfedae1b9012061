"""Whether the books of a worker are right: tests always ask, --debug-checks each second."""

from __future__ import annotations

from collections import Counter

from dopd.errors import AccountingError
from dopd.sched.batch import Batcher
from dopd.sched.events import is_stepping
from dopd.sched.pages import FENCED
from dopd.sched.seats import Seats


def audit(seats: Seats, batcher: Batcher) -> None:
    """Compare seats and fences with what the allocator has noted: `page_has_one_owner` and
    `accounting_closes` of handoff.md; and the batch with the seats. Linear in the pool. Raises
    AccountingError."""
    audit_pages(seats)
    # A slot that was given on has nothing of its former seat in the batch (faults.md, rule 13).
    stepping = [seat.sequence for seat in seats.by_slot.values() if is_stepping(seat.state)]
    if Counter(map(id, stepping)) != Counter(map(id, batcher)):
        raise AccountingError(
            f"{len(stepping)} seats take part in steps, the batch has {len(batcher)} or others"
        )


def audit_pages(seats: Seats) -> None:
    """The part of pages."""
    pages = seats.pages
    pages.check()
    seats.prefixes.check()
    owners = Counter(page for seat in seats.by_slot.values() for page in seat.sequence.pages)
    fenced = [page for fence in seats.fences.values() for page in fence.pages]
    for page, num_owners in owners.items():
        if pages.num_owners(page) != num_owners:
            raise AccountingError(
                f"page {page} has {num_owners} seats, {pages.num_owners(page)} are noted"
            )
    if len(owners) != pages.num_owned:
        raise AccountingError(f"{len(owners)} pages of seats, {pages.num_owned} are noted")
    if len(set(fenced)) != len(fenced) or any(pages.state(page) != FENCED for page in fenced):
        raise AccountingError("a page of a fence is not fenced, or twice")
    if len(fenced) != pages.num_fenced:
        raise AccountingError(f"{len(fenced)} pages of fences, {pages.num_fenced} are noted")
