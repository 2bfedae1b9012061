"""Rules of the seat table that are no single cell: fences, tickets, what an Open is measured by."""

from __future__ import annotations

import dataclasses

import pytest

from dopd.errors import LinkError, ProtocolError
from dopd.sched import events as ev
from dopd.sched.seats import FENCE_S
from dopd.sched.sequence import tokens_hash
from dopd.types import (
    Close,
    CloseReason,
    Compute,
    Endpoint,
    Grant,
    Import,
    KvScrub,
    Limits,
    LinkEnd,
    LogitAdjustments,
    Open,
    Send,
)
from tests.unit.sched.test_cells import LINK, NUM_PAGES, OTHER_LINK, PROMPT, new_seats

WORD = LinkEnd(100, ok=True, pages=2, pos=1, tokens=[50])


def opened(slot: int, kind: Compute | Import, **fields: object) -> Open:
    values = {"pages": 2, "prompt_tokens": len(PROMPT), "limits": Limits(max_tokens=10), **fields}
    return Open(slot, kind=kind, **values)


def fenced() -> ev.Event:
    seats = new_seats()
    seats.handle(opened(1, Import()))
    seats.handle(ev.Begin(LINK, 100))
    seats.handle(Close(1), now=10.0)
    assert seats.pages.num_fenced == 2
    return seats


@pytest.mark.parametrize(
    "event",
    [ev.EndAborted(LINK, 100), ev.EndOk(LINK, WORD), ev.LinkDown(LINK)],
    ids=["End aborted", "End ok", "link down"],
)
def test_a_fence_is_lifted_by_end_or_by_the_synchronised_link(event: ev.Event) -> None:
    seats = fenced()
    assert seats.handle(event) == []
    assert seats.pages.num_free == NUM_PAGES
    assert not seats.fences


@pytest.mark.parametrize(
    "event",
    [
        ev.EndAborted(LINK, 101),
        ev.EndAborted(OTHER_LINK, 100),
        ev.EndOk(OTHER_LINK, WORD),
        ev.LinkDown(OTHER_LINK),
        ev.Landed(LINK, 100, 0, 2),
        ev.Begin(LINK, 100),
        ev.SessionLost(),
    ],
    ids=repr,
)
def test_a_fence_is_lifted_by_nothing_else(event: ev.Event) -> None:
    seats = fenced()
    assert seats.handle(event, now=100.0) == []
    assert seats.pages.num_fenced == 2


def test_an_overdue_fence_aborts_its_link_and_frees_nothing_by_itself() -> None:
    seats = fenced()
    assert seats.overdue(10.0 + FENCE_S - 0.01) == []
    assert seats.overdue(10.0 + FENCE_S) == [ev.AbortLink(LINK, FENCE_S)]
    assert seats.pages.num_fenced == 2


def test_fenced_pages_are_never_allocated() -> None:
    seats = fenced()
    pages = seats.fences[100].pages
    seats.handle(opened(2, Compute(PROMPT), pages=NUM_PAGES - 2))
    assert not set(seats.by_slot[2].sequence.pages) & set(pages)
    (closed,) = seats.handle(opened(3, Compute(PROMPT)))
    assert isinstance(closed, ev.Closed)
    assert closed.reason is CloseReason.REFUSED


def test_a_late_write_lands_on_fenced_pages_of_its_own_shipment_only() -> None:
    seats = fenced()
    assert seats.targets(LINK, 100, 0, 2) == seats.fences[100].pages
    for link, nonce, first, count in [
        (OTHER_LINK, 100, 0, 1),
        (LINK, 101, 0, 1),
        (LINK, 100, 1, 2),
        (LINK, 100, 0, 0),
    ]:
        with pytest.raises(LinkError):
            seats.targets(link, nonce, first, count)


def test_no_write_on_unexposed_page() -> None:
    seats = new_seats()
    seats.handle(opened(1, Import()))
    with pytest.raises(LinkError, match="was not told to write"):
        seats.targets(LINK, 100, 0, 1)
    seats.handle(ev.Begin(LINK, 100))
    assert seats.targets(LINK, 100, 1, 1) == seats.by_slot[1].sequence.pages[1:]
    with pytest.raises(LinkError, match="was not told to write"):
        seats.targets(OTHER_LINK, 100, 0, 1)
    with pytest.raises(LinkError, match="write of pages 1"):
        seats.targets(LINK, 100, 1, 2)


def test_grant_used_once() -> None:
    seats = new_seats()
    seats.handle(opened(1, Import()))
    assert len(seats.handle(ev.Begin(LINK, 100))) == 1
    assert seats.handle(ev.Begin(LINK, 100)) == []
    assert seats.handle(ev.Begin(OTHER_LINK, 100)) == []
    assert seats.by_slot[1].link == LINK


def test_one_grant_for_two_slots_is_a_protocol_error() -> None:
    seats = new_seats()
    grant = Grant("you", 2, (Endpoint("fake", "there"),), 900)
    for slot in (1, 2):
        seats.handle(opened(slot, Compute(PROMPT)))
    seats.handle(Send(1, grant))
    with pytest.raises(ProtocolError, match="slot 1 has already"):
        seats.handle(Send(2, grant))


def test_an_import_is_adjusted_by_the_prompt_that_came_along_and_the_answer_that_arrived() -> None:
    how = LogitAdjustments(repetition_penalty=1.3)
    seats = new_seats()
    seats.handle(opened(1, Import(0, PROMPT), adjustments=how))
    seats.handle(ev.Begin(LINK, 100))
    seats.handle(ev.Landed(LINK, 100, 0, 2))
    word = dataclasses.replace(WORD, tokens_hash=tokens_hash(0, WORD.tokens))
    seats.handle(ev.EndOk(LINK, word))
    sequence = seats.by_slot[1].sequence
    history = sequence.decode_row().history
    assert history is not None
    assert (history.adjustments, history.prompt, history.answer) == (how, PROMPT, [50])
    sequence.append(60)
    assert history.answer == [50, 60]


def test_a_prompt_is_kept_only_for_the_penalty_that_looks_at_it() -> None:
    seats = new_seats()
    seats.handle(opened(1, Compute(PROMPT)))
    seats.handle(opened(2, Compute(PROMPT), adjustments=LogitAdjustments(bias=((3, 1.0),))))
    histories = [seat.sequence.prefill_row(1).history for seat in seats.by_slot.values()]
    assert histories[0] is None
    assert histories[1] is not None
    assert histories[1].prompt == []


BROKEN = {
    "1 pages for 20 tokens": opened(1, Compute(PROMPT), pages=1),
    "2 pages for 33 tokens": opened(1, Compute(PROMPT, 13 * [1]), limits=Limits(max_tokens=20)),
    "2 pages for 40 tokens": opened(1, Import(21), limits=Limits(max_tokens=30)),
    "0 pages for 1 tokens": opened(1, Compute([1]), pages=0, prompt_tokens=1, limits=Limits(1)),
    "at least one token": opened(1, Compute([]), prompt_tokens=0),
    "need at least one token": opened(1, Compute(PROMPT), limits=Limits(max_tokens=0)),
    "19 prompt tokens sent": opened(1, Compute(PROMPT[1:])),
    "10 answer tokens are made": opened(1, Compute(PROMPT, 10 * [1])),
    "token id 1000": opened(1, Compute([*PROMPT[1:], 1000])),
    "token id 2000": opened(1, Compute(PROMPT, [2000])),
    "token id 3000": opened(1, Import(), adjustments=LogitAdjustments(bias=((3000, 1.0),))),
    "0 prompt tokens sent": opened(
        1, Import(), adjustments=LogitAdjustments(repetition_penalty=1.1)
    ),
}


@pytest.mark.parametrize("error", BROKEN)
def test_an_open_that_nobody_can_compute_is_closed_with_error(error: str) -> None:
    seats = new_seats()
    (closed,) = seats.handle(BROKEN[error])
    assert isinstance(closed, ev.Closed)
    assert closed.reason is CloseReason.ERROR
    assert error in closed.message
    assert seats.pages.num_free == NUM_PAGES


def test_a_full_or_draining_worker_refuses() -> None:
    seats = new_seats()
    one = opened(1, Compute([1]), pages=1, prompt_tokens=1)
    for slot in range(4):
        seats.handle(Open(slot, 1, 1, Limits(2), Compute([1])))
    (closed,) = seats.handle(Open(9, 1, 1, Limits(2), Compute([1])))
    assert isinstance(closed, ev.Closed)
    assert closed.message == "4 seats of 4 are taken"
    seats.handle(ev.SessionLost())
    seats.draining = True
    (closed,) = seats.handle(one)
    assert isinstance(closed, ev.Closed)
    assert (closed.reason, closed.message) == (CloseReason.REFUSED, "worker is draining")
    assert closed.retry_ms > 0


@pytest.mark.parametrize("is_complete", [True, False])
def test_pages_of_an_import_that_failed_may_hold_anybodys_bytes(is_complete: bool) -> None:
    """A source frees its pages at once: a peer that reads them then, copies its next owner's."""
    seats = new_seats()
    seats.scrub = KvScrub.TENANT
    seats.handle(opened(1, Import(), pages=NUM_PAGES, tenant=5))
    seats.handle(ev.Begin(LINK, 100))
    seats.handle(ev.Landed(LINK, 100, 0, 2))
    if is_complete:
        seats.handle(ev.EndOk(LINK, dataclasses.replace(WORD, tokens_hash=tokens_hash(0, [50]))))
        seats.handle(Close(1))
    else:
        seats.handle(ev.EndAborted(LINK, 100))
    effects = seats.handle(opened(2, Compute(PROMPT), tenant=5))
    scrubbed = [effect for effect in effects if isinstance(effect, ev.Scrub)]
    assert bool(scrubbed) is not is_complete
    if scrubbed:
        assert scrubbed[0].pages == seats.by_slot[2].sequence.pages
