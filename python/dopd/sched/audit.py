"""Whether the books of a worker's pages are right: tests always ask, --debug-checks each second."""

from __future__ import annotations

from collections import Counter

from dopd.errors import AccountingError
from dopd.sched.pages import FENCED
from dopd.sched.seats import Seats


def audit(seats: Seats) -> None:
    """Compare seats and fences with what the allocator has noted: `page_has_one_owner` and
    `accounting_closes` of handoff.md. Linear in the pool. Raises AccountingError."""
    pages = seats.pages
    pages.check()
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
