"""T1 to T4 of `transfer.base`, on every transport."""

from __future__ import annotations

from functools import partial

import pytest

from dopd.types import LinkEnd
from tests.support.links import REAL_NCCL, Pair

ON_GPU = pytest.param(REAL_NCCL, marks=pytest.mark.gpu)
KINDS = pytest.mark.parametrize(
    "kind", ["tcp", "shm", "cuda_ipc", "nccl", "staged", "fake", ON_GPU]
)
PAGES = list(range(100))
TARGETS = [200 - page for page in PAGES]


@KINDS
def test_t1_end_comes_after_every_write_has_landed(kind: str) -> None:
    with Pair(kind) as pair:
        link = pair.connect()
        seen: list[bool] = []

        def at_end(*event: object) -> None:
            if event[0] == "end":
                pages = zip(PAGES, TARGETS, strict=True)
                pool = pair.destination.pool
                seen.append(all(pool.page(t) == pair.source.pool.page(p) for p, t in pages))

        pair.destination.hook = at_end
        for nonce in range(1, 6):
            pair.destination.exposed[nonce] = TARGETS
            link.write(nonce, 0, PAGES[:60])
            link.write(nonce, 60, PAGES[60:])
            link.end(LinkEnd(nonce, ok=True, pages=len(PAGES)))
        pair.settle(lambda: len(seen) == 5, pair.destination)
        assert all(seen)


@KINDS
def test_t2_every_write_lands_once_and_none_after_end(kind: str) -> None:
    with Pair(kind) as pair:
        link = pair.connect()
        for nonce in (1, 2):
            pair.destination.exposed[nonce] = TARGETS
            link.write(nonce, 0, PAGES)
            link.end(LinkEnd(nonce, ok=True))
        pair.settle(lambda: pair.destination.names().count("end") == 2, pair.destination)
        for nonce in (1, 2):
            events = [event for event in pair.destination.log if event[1] == nonce]
            assert events[-1][0] == "end"
            ranges = [event[2:] for event in events if event[0] == "landed"]
            landed = [first + i for first, count in ranges for i in range(count)]
            assert sorted(landed) == PAGES


def has_written(pair: Pair, num_pages: int) -> bool:
    return sum(event[2] for event in pair.source.log if event[0] == "written") == num_pages


@KINDS
def test_t3_a_page_that_is_written_may_be_used_for_something_else(kind: str) -> None:
    """The source overwrites pages as soon as their writes are completed, landed or not."""
    with Pair(kind) as pair:
        link = pair.connect()
        pair.destination.exposed[1] = TARGETS
        wanted = [bytes(pair.source.pool.page(page)) for page in PAGES]

        for start in range(0, 100, 25):
            done = start + 25
            link.write(1, start, PAGES[start:done])
            pair.settle(partial(has_written, pair, done), pair.source)
            for page in PAGES[start:done]:
                pair.source.pool.page(page)[:] = bytes(4096)
        link.end(LinkEnd(1, ok=True))
        pair.settle(lambda: "end" in pair.destination.names(), pair.destination)
        assert [bytes(pair.destination.pool.page(t)) for t in TARGETS] == wanted


@KINDS
def test_t4_nothing_lands_after_abort_and_synchronise(kind: str) -> None:
    with Pair(kind, page_bytes=65_536) as pair:
        link = pair.connect()
        pair.destination.exposed[1] = PAGES
        for _ in range(20):
            link.write(1, 0, PAGES)
        if kind != "fake":
            pair.settle(lambda: "landed" in pair.destination.names(), pair.destination)
        else:
            while "landed" not in pair.destination.names():
                pair.network.deliver(pair.random.choice(pair.network.pending()))
        end = pair.destination.links[0]
        end.abort("test")
        assert end.synchronise(10)
        before = bytes(pair.destination.pool.memory)
        assert any(before), "nothing had landed: the test shows nothing"
        for page in PAGES:
            pair.source.pool.page(page)[:] = b"\xff" * 65_536
        pair.settle(lambda: "down" in pair.source.names(), pair.source)
        assert bytes(pair.destination.pool.memory) == before
        pair.settle(lambda: "down" in pair.destination.names(), pair.destination)
        assert pair.destination.names()[-1] == "down"
        assert pair.destination.names().count("down") == 1


@KINDS
def test_t4_a_late_write_does_not_land_on_a_link_that_came_up_again(kind: str) -> None:
    with Pair(kind) as pair:
        old = pair.connect()
        pair.destination.exposed[1] = PAGES
        old.abort("test")
        assert old.synchronise(10)
        new = pair.connect()
        assert new.id != old.id
        old.write(1, 0, PAGES)
        new.end(LinkEnd(1, ok=False))
        pair.settle(lambda: "end" in pair.destination.names(), pair.destination)
        assert "landed" not in pair.destination.names()


@KINDS
def test_begin_is_answered_with_go(kind: str) -> None:
    with Pair(kind) as pair:
        link = pair.connect()
        pair.destination.exposed[9] = [5, 6, 7]
        link.begin(9)
        pair.settle(lambda: ("go", 9, 3) in pair.source.log, pair.source)


@KINDS
def test_a_write_that_nobody_exposed_costs_the_link_and_nothing_else(kind: str) -> None:
    with Pair(kind) as pair:
        pair.connect().write(666, 0, [0])
        pair.settle(lambda: "down" in pair.destination.names(), pair.destination)
        assert not any(pair.destination.pool.memory)
        link = pair.connect()
        pair.destination.exposed[1] = [0]
        link.write(1, 0, [3])
        pair.settle(lambda: "landed" in pair.destination.names(), pair.destination)


@KINDS
def test_an_aborted_end_drops_queued_writes_or_lets_them_land_before(kind: str) -> None:
    with Pair(kind) as pair:
        link = pair.connect()
        pair.destination.exposed[1] = TARGETS
        link.write(1, 0, PAGES)
        link.end(LinkEnd(1, ok=False))
        pair.settle(lambda: "end" in pair.destination.names(), pair.destination)
        assert pair.destination.log[-1] == ("end", 1, False)
