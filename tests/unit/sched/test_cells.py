"""Every cell of "Seat at a worker" (handoff.md section 4), written down a second time by hand.

Each row below is the design's row; each cell says what becomes of the seat and of its pages, and
which effects come out, in order. `!` must raise and change nothing.
"""

from __future__ import annotations

import dataclasses

import pytest

from dopd.errors import ProtocolError
from dopd.sched import events as ev
from dopd.sched.cells import TABLE
from dopd.sched.events import State
from dopd.sched.limits import SeatLimits
from dopd.sched.pages import PageAllocator
from dopd.sched.seats import Seats
from dopd.sched.sequence import tokens_hash
from dopd.types import (
    Close,
    CloseReason,
    Compute,
    Endpoint,
    Grant,
    Import,
    Limits,
    LinkEnd,
    Open,
    Peer,
    Send,
)

SLOT, LINK, OTHER_LINK = 5, 1, 2
NUM_PAGES = 8
PROMPT = list(range(20))
TICKET = Grant("me", 1, (Endpoint("fake", "here"),), 0)
GRANT = Grant("you", 2, (Endpoint("fake", "there"),), 900)
GRANT_2 = Grant("they", 3, (Endpoint("fake", "yonder"),), 901)
STATES = list(State)


def open_event(kind: Compute | Import, pages: int = 3) -> Open:
    return Open(SLOT, pages, len(PROMPT), Limits(max_tokens=20), kind, prompt_hash=7)


def new_seats() -> Seats:
    limits = SeatLimits(TICKET, 4, 16, 128, 1000, 1000, frozenset({999}))
    nonces = iter(range(100, 200))
    seats = Seats(limits, PageAllocator(NUM_PAGES), draw=lambda: next(nonces))
    seats.handle(ev.LinkUp(OTHER_LINK, Peer("nobody", 9, (Endpoint("fake", "nowhere"),))))
    return seats


def seats_in(state: State) -> Seats:
    """A table with one seat in this state, reached by events alone; one token is made."""
    seats = new_seats()
    if state is State.NONE:
        return seats
    if state in (State.RESERVED, State.EXPOSED):
        seats.handle(open_event(Import()))
        if state is State.EXPOSED:
            seats.handle(ev.Begin(LINK, 100))
        return seats
    seats.handle(open_event(Compute(PROMPT)))
    sequence = seats.by_slot[SLOT].sequence
    sequence.computed = len(PROMPT)
    sequence.append(50)
    if state > State.RUN:
        seats.handle(Send(SLOT, GRANT))
    if state > State.WANT:
        seats.handle(ev.LinkUp(LINK, Peer.of(GRANT)))
    if state > State.BEGUN:
        seats.handle(ev.Go(LINK, GRANT.nonce, 3))
    if state > State.GOING:
        seats.handle(ev.Boundary(SLOT, 1 << 30))
    if state > State.FROZEN:
        seats.handle(ev.Written(LINK, GRANT.nonce, 2))
    assert seats.by_slot[SLOT].state is state
    return seats


def described(seats: Seats, effects: list[ev.Effect]) -> str:
    """What became of the seat, then the effects."""
    seat = seats.by_slot.get(SLOT)
    words = ["gone" if seat is None else seat.state.name]
    if seat is None and seats.pages.num_fenced:
        words = ["fenced"]
        assert [fence.link for fence in seats.fences.values()] == [LINK]
    assert (seat is None) == (seats.pages.num_owned == 0)
    for effect in effects:
        match effect:
            case ev.SendEnd(link, end):
                assert link == LINK
                words.append("end-ok" if end.ok else "end-aborted")
            case ev.Closed(_, reason):
                words.append(reason.value)
            case ev.WritePages(_, _, first, pages):
                words.append(f"write-{first}-{first + len(pages)}")
            case _:
                words.append(type(effect).__name__)
    return " ".join(words)


# One line a column: NONE, RESERVED, EXPOSED, RUN, WANT, BEGUN, GOING, FROZEN, SENT.
# `=`: no effect, no change (the design's `-` and `=`). `!`: refused, no change.
CELLS: list[tuple[str, ev.Event, list[str]]] = [
    ("open", open_event(Compute(PROMPT)), ["RUN Joins", *8 * ["!"]]),
    ("open import", open_event(Import()), ["RESERVED Opened", *8 * ["!"]]),
    ("open beyond the pool", open_event(Import(), 9), ["gone refused", *8 * ["!"]]),
    (
        "send",
        Send(SLOT, GRANT_2),
        [
            *3 * ["="],
            *3 * ["WANT Dial"],
            "WANT end-aborted Dial",
            "WANT end-aborted Joins Dial",
            "WANT Joins Dial",
        ],
    ),
    (
        "stay",
        ev.Stay(SLOT),
        [*4 * ["="], "RUN", "RUN", "RUN end-aborted", "RUN end-aborted Joins", "RUN Joins"],
    ),
    (
        "close",
        Close(SLOT),
        [
            "=",
            "gone asked",
            "fenced asked",
            *3 * ["gone Leaves asked"],
            "gone end-aborted Leaves asked",
            "gone end-aborted Joins Leaves asked",
            "gone asked",
        ],
    ),
    (
        "session lost",
        ev.SessionLost(),
        [
            "=",
            "gone",
            "fenced",
            *3 * ["gone Leaves"],
            "gone end-aborted Leaves",
            "gone end-aborted Joins Leaves",
            "gone",
        ],
    ),
    ("link up", ev.LinkUp(LINK, Peer.of(GRANT)), [*4 * ["="], "BEGUN SendBegin", *4 * ["="]]),
    ("link up elsewhere", ev.LinkUp(OTHER_LINK, Peer.of(GRANT_2)), 9 * ["="]),
    ("begin", ev.Begin(LINK, 100), ["=", "EXPOSED SendGo", *7 * ["="]]),
    ("begin of an unknown nonce", ev.Begin(LINK, 99), 9 * ["="]),
    (
        "go",
        ev.Go(LINK, GRANT.nonce, 3),
        [
            "gone end-aborted",
            "RESERVED end-aborted",
            "EXPOSED end-aborted",
            "RUN end-aborted",
            "WANT end-aborted",
            "GOING write-0-1",
            *3 * ["="],
        ],
    ),
    ("write lands", ev.Landed(LINK, 100, 0, 2), ["!", "!", "EXPOSED", *6 * ["!"]]),
    ("end aborted", ev.EndAborted(LINK, 100), ["=", "=", "gone lost", *6 * ["="]]),
    ("end aborted, other link", ev.EndAborted(OTHER_LINK, 100), 9 * ["="]),
    (
        "link down",
        ev.LinkDown(LINK),
        ["=", "=", "gone lost", "=", "=", "RUN", "RUN", "RUN Joins", "="],
    ),
    ("other link down", ev.LinkDown(OTHER_LINK), 9 * ["="]),
    ("written", ev.Written(LINK, GRANT.nonce, 2), [*7 * ["="], "SENT end-ok", "="]),
    ("boundary", ev.Boundary(SLOT, 0), [*6 * ["="], "=", "=", "="]),
    (
        "boundary, fast link",
        ev.Boundary(SLOT, 1 << 30),
        [*6 * ["="], "FROZEN Leaves write-1-2", "=", "="],
    ),
    (
        "last token",
        ev.Finished(SLOT, CloseReason.STOP),
        [*3 * ["="], *3 * ["gone Leaves stop"], "gone end-aborted Leaves stop", "!", "!"],
    ),
    (
        "preempted",
        ev.Dropped(SLOT, CloseReason.PREEMPTED),
        [
            "=",
            "gone preempted",
            "fenced preempted",
            *3 * ["gone Leaves preempted"],
            "gone end-aborted Leaves preempted",
            "!",
            "!",
        ],
    ),
]


@pytest.mark.parametrize(
    ("state", "event", "expected"),
    [
        pytest.param(state, event, cell, id=f"{name}-{state.name}")
        for name, event, cells in CELLS
        for state, cell in zip(STATES, cells, strict=True)
    ],
)
def test_cell(state: State, event: ev.Event, expected: str) -> None:
    seats = seats_in(state)
    before = described(seats, [])
    if expected == "!":
        with pytest.raises(ProtocolError, match="is not allowed for"):
            seats.handle(event)
        assert described(seats, []) == before
    else:
        effects = seats.handle(event)
        assert described(seats, effects) == (before if expected == "=" else expected)
    seats.pages.check()


def test_every_event_of_the_table_is_tested() -> None:
    tested = {type(event) for _, event, _ in CELLS}
    assert set(TABLE) - tested == {ev.EndOk, ev.Computed}


def test_a_boundary_freezes_when_only_one_page_is_left() -> None:
    seats = seats_in(State.GOING)
    assert seats.handle(ev.Boundary(SLOT, 0)) == [], "two pages are left, the first is on its way"
    seats.handle(ev.Written(LINK, GRANT.nonce, 1))
    assert described(seats, seats.handle(ev.Boundary(SLOT, 0))) == "FROZEN Leaves write-1-2"


def test_a_prompt_that_is_not_computed_yet_does_not_freeze() -> None:
    seats = seats_in(State.GOING)
    seats.by_slot[SLOT].sequence.computed = 10
    assert seats.handle(ev.Boundary(SLOT, 1 << 30)) == []


def test_full_pages_travel_as_they_are_computed_and_the_page_in_use_stays() -> None:
    seats = seats_in(State.GOING)
    sequence = seats.by_slot[SLOT].sequence
    assert seats.handle(ev.Computed(SLOT)) == []
    sequence.computed = 31
    assert seats.handle(ev.Computed(SLOT)) == []
    sequence.computed = 33
    assert described(seats, seats.handle(ev.Computed(SLOT))) == "GOING write-1-2"


def test_end_waits_until_every_write_is_completed() -> None:
    seats = seats_in(State.FROZEN)
    assert seats.handle(ev.Boundary(SLOT, 0)) == []
    assert seats.handle(ev.Written(LINK, GRANT.nonce, 1)) == []
    (end,) = seats.handle(ev.Written(LINK, GRANT.nonce, 1))
    assert end == ev.SendEnd(LINK, LinkEnd(GRANT.nonce, True, 2, 1, [50], tokens_hash(7, [50])))


def test_a_destination_with_fewer_pages_is_not_written_to() -> None:
    seats = seats_in(State.BEGUN)
    seats.handle(ev.Go(LINK, GRANT.nonce, 1))
    effects = seats.handle(ev.Boundary(SLOT, 1 << 30))
    assert described(seats, effects) == "RUN Leaves end-aborted Joins"


def exposed_with(first: int, count: int, have: int = 0, max_model_len: int = 1000) -> Seats:
    seats = new_seats()
    seats.limits = dataclasses.replace(seats.limits, max_model_len=max_model_len)
    seats.handle(open_event(Import(have)))
    seats.handle(ev.Begin(LINK, 100))
    if count:
        seats.handle(ev.Landed(LINK, 100, first, count))
    return seats


def test_end_ok_makes_the_seat_run_with_the_tail_that_the_router_lacks() -> None:
    seats = exposed_with(0, 2, have=1)
    word = LinkEnd(100, True, 2, 3, [50, 51, 52], tokens_hash(7, [50, 51, 52]))
    joins, arrived = seats.handle(ev.EndOk(LINK, word))
    assert arrived == ev.Arrived(SLOT, 3, [51, 52])
    assert isinstance(joins, ev.Joins)
    assert joins.sequence.is_decoding
    assert joins.sequence.computed == len(PROMPT) + 2
    assert seats.by_slot[SLOT].state is State.RUN
    # The ticket is used up: a second Begin finds nothing.
    assert seats.handle(ev.Begin(LINK, 100)) == []


HASH_1 = tokens_hash(7, [50])
WRONG_ENDS = {
    "pages missing": (exposed_with(0, 1), LinkEnd(100, True, 2, 1, [50], HASH_1)),
    "first page missing": (exposed_with(1, 1), LinkEnd(100, True, 2, 1, [50], HASH_1)),
    "no pages": (exposed_with(0, 0), LinkEnd(100, True, 2, 1, [50], HASH_1)),
    "too few announced": (exposed_with(0, 2), LinkEnd(100, True, 1, 1, [50], HASH_1)),
    "too many announced": (exposed_with(0, 3), LinkEnd(100, True, 3, 1, [50], HASH_1)),
    "other tokens": (exposed_with(0, 2), LinkEnd(100, True, 2, 1, [51], HASH_1)),
    "other prompt": (exposed_with(0, 2), LinkEnd(100, True, 2, 1, [50], tokens_hash(8, [50]))),
    "no token": (exposed_with(0, 2), LinkEnd(100, True, 2, 0, [], tokens_hash(7, []))),
    "tokens missing": (exposed_with(0, 2), LinkEnd(100, True, 2, 2, [50], HASH_1)),
    "older than the router": (exposed_with(0, 2, 2), LinkEnd(100, True, 2, 1, [50], HASH_1)),
    "token outside of the vocabulary": (
        exposed_with(0, 2),
        LinkEnd(100, True, 2, 1, [1000], tokens_hash(7, [1000])),
    ),
    "beyond the model": (
        exposed_with(0, 2, max_model_len=21),
        LinkEnd(100, True, 2, 1, [50], HASH_1),
    ),
    "beyond max_tokens": (
        exposed_with(0, 3),
        LinkEnd(100, True, 3, 20, 20 * [50], tokens_hash(7, 20 * [50])),
    ),
}


@pytest.mark.parametrize("name", WRONG_ENDS)
def test_attend_only_complete_current_own_pages(name: str) -> None:
    seats, end = WRONG_ENDS[name]
    (closed,) = seats.handle(ev.EndOk(LINK, end))
    assert isinstance(closed, ev.Closed)
    assert closed.reason is CloseReason.LOST
    assert seats.pages.num_free == NUM_PAGES


def test_end_ok_over_another_link_is_ignored() -> None:
    seats = exposed_with(0, 2)
    assert seats.handle(ev.EndOk(OTHER_LINK, LinkEnd(100, True, 2, 1, [50], HASH_1))) == []
    assert seats.by_slot[SLOT].state is State.EXPOSED
