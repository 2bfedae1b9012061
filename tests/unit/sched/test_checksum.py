"""The KV check: what a checksum covers, and that nothing is attended to whose bytes differ."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from functools import partial

import pytest

from dopd.errors import LinkError
from dopd.kv.bytes_pool import BytesPool
from dopd.sched import events as ev
from dopd.sched.checksum import PagesHash
from dopd.sched.events import State
from dopd.sched.seats import Seats
from dopd.sched.sequence import tokens_hash
from dopd.types import CloseReason, Import, KvCheck, LinkEnd
from tests.unit.sched.test_cells import (
    GRANT,
    LINK,
    NUM_PAGES,
    OTHER_LINK,
    SLOT,
    new_seats,
    open_event,
    seats_in,
)

PAGE_BYTES = 512
ORDER = [5, 2, 7]


def random_pool(seed: int = 1) -> BytesPool:
    pool = BytesPool(NUM_PAGES, PAGE_BYTES)
    pool.memory[:] = random.Random(seed).randbytes(NUM_PAGES * PAGE_BYTES)
    return pool


def value(check: KvCheck, pool: BytesPool, pages: list[int]) -> int:
    pages_hash = PagesHash(check, pool.chunks)
    pages_hash.add(pages)
    return pages_hash.value()


def test_the_checksum_is_what_link_proto_says() -> None:
    pool = random_pool()
    whole = [bytes(pool.page(page)) for page in ORDER]
    for check, parts in (
        (KvCheck.FULL, whole),
        (KvCheck.HEADER, [page[:64] + page[-64:] for page in whole]),
    ):
        digest = hashlib.sha256(b"".join(parts)).digest()
        assert value(check, pool, ORDER) == int.from_bytes(digest[:8], "little")


def test_full_sees_every_bit() -> None:
    rng = random.Random(7)
    right = value(KvCheck.FULL, random_pool(), ORDER)
    for _ in range(500):
        pool = random_pool()
        pool.page(rng.choice(ORDER))[rng.randrange(PAGE_BYTES)] ^= 1 << rng.randrange(8)
        assert value(KvCheck.FULL, pool, ORDER) != right


def test_header_sees_misplaced_missing_and_stale_pages() -> None:
    pool, stale = random_pool(), random_pool(seed=2)
    right = value(KvCheck.HEADER, pool, ORDER)
    assert value(KvCheck.HEADER, pool, [2, 5, 7]) != right
    assert value(KvCheck.HEADER, pool, ORDER[:2]) != right
    stale.page(5)[:], stale.page(2)[:] = pool.page(5), pool.page(2)
    assert value(KvCheck.HEADER, stale, ORDER) != right
    pool.page(5)[PAGE_BYTES // 2] ^= 1
    assert value(KvCheck.HEADER, pool, ORDER) == right, "what it does not promise"


def destination(pool: BytesPool, check: KvCheck = KvCheck.FULL) -> Seats:
    """An import whose two pages have landed and are hashed, as the desk does."""
    seats = new_seats()
    seats.new_hash = partial(PagesHash, check, pool.chunks)
    seats.handle(open_event(Import()))
    seats.handle(ev.Begin(LINK, 100))
    # The later page first: the hash is over pages in their order.
    for first in (1, 0):
        seats.handle(ev.Landed(LINK, 100, first, 1))
        found = seats.landed_unhashed(LINK, 100)
        assert found is not None
        pages_hash, pages = found
        pages_hash.add(pages)
    return seats


def word(checksum: int | None) -> LinkEnd:
    return LinkEnd(100, True, 2, 1, [50], tokens_hash(7, [50]), checksum)


def test_an_import_runs_if_its_bytes_are_those_of_the_source() -> None:
    pool = random_pool()
    seats = destination(pool)
    right = value(KvCheck.FULL, pool, seats.by_slot[SLOT].sequence.pages[:2])
    seats.handle(ev.EndOk(LINK, word(right)))
    assert seats.by_slot[SLOT].state is State.RUN


@pytest.mark.parametrize(
    ("checksum", "message"),
    [(1234, "the KV was damaged on its way"), (None, "no checksum came")],
)
def test_damaged_or_unchecked_kv_is_lost_and_never_attended_to(
    checksum: int | None, message: str
) -> None:
    seats = destination(random_pool())
    (closed,) = seats.handle(ev.EndOk(LINK, word(checksum)))
    assert isinstance(closed, ev.Closed)
    assert closed.reason is CloseReason.LOST
    assert message in closed.message
    assert seats.pages.num_free == NUM_PAGES


def test_a_checksum_over_more_pages_than_announced_does_not_pass() -> None:
    """All three pages of the seat landed, two are announced with the checksum of all three."""
    pool = random_pool()
    seats = destination(pool)
    seats.handle(ev.Landed(LINK, 100, 2, 1))
    found = seats.landed_unhashed(LINK, 100)
    assert found is not None
    pages_hash, pages = found
    pages_hash.add(pages)
    (closed,) = seats.handle(ev.EndOk(LINK, word(pages_hash.value())))
    assert isinstance(closed, ev.Closed)
    assert closed.reason is CloseReason.LOST


def test_without_a_check_nothing_is_hashed_and_a_checksum_is_not_asked_for() -> None:
    seats = new_seats()
    seats.handle(open_event(Import()))
    seats.handle(ev.Begin(LINK, 100))
    seats.handle(ev.Landed(LINK, 100, 0, 2))
    assert seats.landed_unhashed(LINK, 100) is None
    seats.handle(ev.EndOk(LINK, word(None)))
    assert seats.by_slot[SLOT].state is State.RUN


def test_a_page_is_written_once() -> None:
    """Contract T2 is the transport's; a peer that breaks it must not change what was hashed."""
    seats = destination(random_pool())
    for first, count in ((0, 1), (1, 2)):
        with pytest.raises(LinkError, match="second write"):
            seats.targets(LINK, 100, first, count)
    assert seats.targets(LINK, 100, 2, 1) == seats.by_slot[SLOT].sequence.pages[2:]


def test_only_the_bound_link_feeds_a_hash() -> None:
    seats = destination(random_pool())
    assert seats.landed_unhashed(OTHER_LINK, 100) is None
    assert seats.landed_unhashed(LINK, 101) is None
    assert seats.written_unhashed(LINK, 100, 1) is None


def test_a_source_says_the_checksum_of_every_page_that_it_wrote() -> None:
    pool = random_pool()
    for count in (1, 2):
        seats = seats_in(State.FROZEN)
        seat = seats.by_slot[SLOT]
        assert seat.shipment is not None
        seat.shipment.hash = PagesHash(KvCheck.FULL, pool.chunks)
        effects: list[ev.Effect] = []
        while not effects:
            found = seats.written_unhashed(LINK, GRANT.nonce, count)
            assert found is not None
            pages_hash, pages = found
            pages_hash.add(pages)
            effects = seats.handle(ev.Written(LINK, GRANT.nonce, count))
        (end,) = effects
        assert isinstance(end, ev.SendEnd)
        right = value(KvCheck.FULL, pool, seat.sequence.pages[:2])
        assert end.end == dataclasses.replace(end.end, ok=True, pages=2, checksum=right)
