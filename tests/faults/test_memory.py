"""Rows B about pages: a page that a peer may still write, a full pool, a router that is gone.

Small pools, slow writes, cancelled requests: what would be wrong tokens if a page had two owners.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from dopd.sched.pages import CACHED, FENCED, FREE, OWNED, PageAllocator
from dopd.types import LinkMessage, LinkWrite
from tests.support.faults.fleet import Fleet, all_travels
from tests.support.faults.frames import Frame, Stranger, changing, encode
from tests.support.faults.proxy import Pipe
from tests.support.faults.traffic import Ask, Verdict
from tests.support.faults.watch import record
from tests.support.processes import Process, ended, wait_for

PAGE_BYTES = 128
POOL_PAGES = 48
# Half a pool, so that two requests fill it.
PROMPT_TOKENS = 300
ANSWER_TOKENS = 50


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One worker of each role; the decode worker's pool holds two requests, all of which travel."""
    folder = tmp_path_factory.mktemp("small")
    one = Fleet(folder, *all_travels(folder), "--kv-check", "full")
    try:
        one.add("p0", "prefill", "--kv-memory", str(4 * POOL_PAGES * PAGE_BYTES))
        one.add("d0", "decode", "--kv-memory", str(POOL_PAGES * PAGE_BYTES))
        one.begin()
        yield one
    finally:
        one.close()


def large_asks(count: int, seed: int, *, leaving: bool) -> list[Ask]:
    """Requests of half a pool; of every two one client goes away early, if `leaving`."""
    rng = random.Random(seed)
    return [
        Ask(
            tuple(
                rng.randrange(256) for _ in range(rng.randint(PROMPT_TOKENS // 2, PROMPT_TOKENS))
            ),
            ANSWER_TOKENS,
            seed=k,
            leave_after=rng.randint(1, 3) if leaving and k % 2 else None,
        )
        for k in range(count)
    ]


class SlowWrites:
    """Every write comes late: some while its seat lives, some on fenced pages, some never."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.count = 0
        # What the proxy owes each connection, so that frames stay in order.
        self._due: dict[Pipe, float] = {}

    def __call__(self, pipe: Pipe, message: LinkMessage, payload: bytes) -> Iterable[Frame]:
        now = time.monotonic()
        due = max(self._due.get(pipe, now), now)
        if isinstance(message, LinkWrite):
            self.count += 1
            due += self._rng.choice((0.0, 0.05, 0.1, 0.3, 0.9))
        self._due[pipe] = due + 0.001
        pipe.later(due - now, encode(message, payload))
        return []


@pytest.mark.parametrize("count", [24, pytest.param(600, marks=pytest.mark.soak)])
def test_b5_pages_under_a_write_are_nobodys_until_it_ends(small: Fleet, count: int) -> None:
    """Clients go away while pages travel, and others want those pages at once."""
    slow = SlowWrites(count)
    small.forget()
    # A first hand-off has seconds; from then on the slow ones are given up.
    with small.ask(*large_asks(1, 0, leaving=False)) as traffic:
        traffic.finish().check(at_least=1)
    assert small.router.status()["handoffs_by"]["arrived"] == 1
    data = small.nodes["d0"].data
    assert data is not None
    data.plan = changing(slow)
    data.reset()
    with small.ask(*large_asks(count, count, leaving=True), clients=8) as traffic:
        results = traffic.finish()
    results.check(at_least=count // 2)
    assert len(results.of(Verdict.LEFT)) >= count // 2 - count // 10
    assert slow.count > 0
    assert small.watch.fenced_max > 0, "no page was ever fenced: nothing was tested"
    small.settled()


def test_b11_a_full_pool_makes_requests_wait_in_the_router(small: Fleet) -> None:
    waiting = 0

    def look() -> bool:
        nonlocal waiting
        waiting = max(waiting, small.router.status()["requests_waiting"])
        return not traffic.is_running

    with small.ask(*large_asks(24, 11, leaving=False), clients=24) as traffic:
        wait_for(look, "all answers")
        results = traffic.finish()
    results.check(at_least=24)
    assert waiting > 0, "nothing had to wait: nothing was tested"
    record("B11", waiting=waiting, longest_s=max(o.ended_s - o.begun_s for o in results.all))
    small.settled()


def test_b13_a_router_that_dies_in_a_hand_off_leaves_no_page_behind(small: Fleet) -> None:
    small.forget()
    data = small.nodes["d0"].data
    assert data is not None
    with small.ask(*large_asks(4, 13, leaving=False), clients=4) as traffic:
        # Tickets are shown and pages named, and then nothing comes any more.
        data.hold()
        wait_for(lambda: small.router.status()["handoffs_running"] > 0, "a hand-off under way")
        small.router.process.kill()
        killed_s = time.monotonic()
        results = traffic.finish()
    assert not results.of(Verdict.WRONG)
    small.restart_router()
    small.settled()
    record("B13", clean_s=time.monotonic() - killed_s)
    with small.ask(*large_asks(4, 14, leaving=False)) as traffic:
        traffic.finish().check(at_least=4)
    small.settled()


def test_b10_another_layout_is_refused_with_both_sides_named(small: Fleet, tmp_path: Path) -> None:
    words = ["worker", "--mock", "--role", "decode", "--name", "odd", "--page-size", "8"]
    words += ["--join", small.router.workers, "--join-token-file", str(small.token_file)]
    with ended(Process(tmp_path / "odd", *words)) as odd:
        assert odd.popen.wait(30) == 2
        told = odd.told()
    assert "page" in told and "8" in told and "16" in told, told
    data = small.nodes["d0"].data
    assert data is not None
    with Stranger(data.upstream or "", small.token_file.read_text(), layout=0x5) as stranger:
        assert "0x5" in stranger.error and "here 0x" in stranger.error
    small.settled()


class Model:
    """The allocator again, as a plain table."""

    def __init__(self, num_pages: int) -> None:
        self.pages = PageAllocator(num_pages)
        self.state = [FREE] * num_pages
        # Page lists of one owner each, by their state.
        self.held: dict[int, list[list[int]]] = {OWNED: [], FENCED: []}
        # Pages that stay when they are freed.
        self.kept: set[int] = set()
        self.pages.keep_through(self.kept, self._evicted)

    def allocate(self, count: int) -> None:
        """Succeeds exactly if so many are free or cached: a paged pool has no fragmentation."""
        is_room = count <= self.state.count(FREE) + self.state.count(CACHED)
        got = self.pages.allocate(count)
        assert (got is not None) == is_room
        if got:
            assert len(set(got)) == count
            assert {self.state[page] for page in got} == {FREE}, "a page that was not free"
            self._move(got, OWNED)

    def change(self, rng: random.Random, old: int, new: int) -> None:
        """One list of pages from one state to another, if there is one."""
        lists = self.held[old]
        if not lists:
            return
        index = rng.randrange(len(lists))
        lists[index], lists[-1] = lists[-1], lists[index]
        pages = lists.pop()
        if new == CACHED:
            self.kept.update(pages)
        do = {FENCED: self.pages.fence}.get(new, self.pages.free)
        (self.pages.unfence if old == FENCED else do)(pages)
        self._move(pages, new)

    def _evicted(self, page: int) -> None:
        assert self.state[page] == CACHED
        self.kept.remove(page)
        self.state[page] = FREE

    def _move(self, pages: list[int], new: int) -> None:
        for page in pages:
            self.state[page] = new
        if new in self.held:
            self.held[new].append(pages)

    def check(self) -> None:
        """`accounting_closes`, and the pages are where the table has them."""
        self.pages.check()
        found = [self.pages.num_free, self.pages.num_owned]
        found += [self.pages.num_cached, self.pages.num_fenced]
        assert found == [self.state.count(s) for s in (FREE, OWNED, CACHED, FENCED)]
        assert sum(found) == len(self.state)


CHANGES = ((OWNED, FREE), (OWNED, FENCED), (OWNED, CACHED), (FENCED, FREE))


@pytest.mark.parametrize(
    "operations",
    [100_000, pytest.param(10_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
)
def test_b22_books_close_under_any_pressure(operations: int) -> None:
    rng = random.Random(operations)
    model = Model(500)
    for number in range(operations):
        if rng.random() < 0.5:
            model.allocate(rng.choice((1, 1, 2, 5, 30, 120)))
        else:
            model.change(rng, *rng.choice(CHANGES))
        if number % 1_000 == 0:
            model.check()
    model.check()


def test_b12_a_leaver_among_stayers_changes_no_ones_tokens(small: Fleet) -> None:
    """Seats come and go on a full pool: neighbours on recycled pages answer as if alone."""
    stay = large_asks(10, 12, leaving=False)
    leave = [dataclasses.replace(one, leave_after=1) for one in large_asks(10, 21, leaving=False)]
    mixed = [ask for two in zip(stay, leave, strict=True) for ask in two]
    with small.ask(*mixed, clients=10) as traffic:
        results = traffic.finish()
    results.check(at_least=10)
    small.settled()
