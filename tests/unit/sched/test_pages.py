"""The page allocator under any sequence of operations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from dopd.errors import AccountingError
from dopd.sched.pages import CACHED, FENCED, FREE, OWNED, PageAllocator, runs_of
from tests.support.cases import cases

NUM_PAGES = 40


class Pages(RuleBasedStateMachine):
    """`page_has_one_owner` and `accounting_closes`, against a dict of who has what."""

    owned = Bundle("owned")
    shared = Bundle("shared")
    fenced = Bundle("fenced")

    def __init__(self) -> None:
        super().__init__()
        self.pages = PageAllocator(NUM_PAGES)
        self.state = dict.fromkeys(range(NUM_PAGES), FREE)
        self.kept: set[int] = set()
        # Those that are evicted first in front.
        self.cached: list[int] = []
        self.evicted: list[int] = []
        self.pages.keep_through(self.kept, self.on_evict)

    def on_evict(self, page: int) -> None:
        self.kept.remove(page)
        self.evicted.append(page)

    def move(self, pages: tuple[int, ...], old: int, new: int) -> tuple[int, ...]:
        for page in pages:
            assert self.state[page] == old
            self.state[page] = new
        return pages

    def count(self, state: int) -> int:
        return sum(one == state for one in self.state.values())

    def freed(self, pages: tuple[int, ...]) -> None:
        gone = tuple(page for page in pages if page not in self.kept)
        kept = tuple(page for page in pages if page in self.kept)
        self.move(gone, OWNED, FREE)
        self.move(kept, OWNED, CACHED)
        self.cached += reversed(kept)

    @rule(target=owned, num_pages=st.integers(0, NUM_PAGES + 3))
    def allocate(self, num_pages: int) -> tuple[int, ...]:
        free, cached = self.count(FREE), self.count(CACHED)
        self.evicted.clear()
        got = self.pages.allocate(num_pages)
        assert (got is None) == (num_pages > free + cached)
        assert got is None or len(set(got)) == len(got) == num_pages
        num_evicted = 0 if got is None else max(num_pages - free, 0)
        assert self.evicted == self.cached[:num_evicted]
        self.move(tuple(self.evicted), CACHED, FREE)
        del self.cached[:num_evicted]
        return self.move(tuple(got or ()), FREE, OWNED)

    @rule(pages=consumes(owned))
    def free(self, pages: tuple[int, ...]) -> None:
        self.pages.free(pages)
        self.freed(pages)

    @rule(pages=owned, num_kept=st.integers(0, NUM_PAGES))
    def keep(self, pages: tuple[int, ...], num_kept: int) -> None:
        self.kept.update(pages[:num_kept])

    @rule(target=shared, pages=consumes(owned), num_owners=st.integers(2, 4))
    def share(self, pages: tuple[int, ...], num_owners: int) -> tuple[tuple[int, ...], int]:
        for _ in range(num_owners - 1):
            self.pages.share(pages)
        return pages, num_owners

    @rule(target=owned, num_pages=st.integers(1, NUM_PAGES))
    def take_from_the_cache(self, num_pages: int) -> tuple[int, ...]:
        pages = tuple(self.cached[-num_pages:])
        del self.cached[-num_pages:]
        self.pages.share(pages)
        return self.move(pages, CACHED, OWNED)

    @rule(target=shared, held=consumes(shared))
    def free_shared(self, held: tuple[tuple[int, ...], int]) -> tuple[tuple[int, ...], int]:
        """Free only when the last owner is gone."""
        pages, num_owners = held
        assert all(self.pages.num_owners(page) == num_owners for page in pages)
        if num_owners > 1 and pages:
            with pytest.raises(AccountingError, match="shared"):
                self.pages.fence(pages)
        if num_owners:
            self.pages.free(pages)
        if num_owners == 1:
            self.freed(pages)
        return (pages, num_owners - 1) if num_owners > 1 else ((), 0)

    @rule(target=fenced, pages=consumes(owned))
    def fence(self, pages: tuple[int, ...]) -> tuple[int, ...]:
        if not self.kept.isdisjoint(pages):
            with pytest.raises(AccountingError, match="kept for others"):
                self.pages.fence(pages)
        self.kept.difference_update(pages)
        self.pages.fence(pages)
        return self.move(pages, OWNED, FENCED)

    @rule(pages=consumes(fenced))
    def unfence(self, pages: tuple[int, ...]) -> None:
        self.pages.unfence(pages)
        self.move(pages, FENCED, FREE)

    @rule(num_pages=st.integers(0, NUM_PAGES))
    def evict(self, num_pages: int) -> None:
        num_pages = min(num_pages, len(self.cached))
        self.evicted.clear()
        self.pages.evict(num_pages)
        assert self.evicted == self.cached[:num_pages]
        self.move(tuple(self.evicted), CACHED, FREE)
        del self.cached[:num_pages]

    @invariant()
    def accounting_closes(self) -> None:
        self.pages.check()
        assert [self.pages.state(page) for page in range(NUM_PAGES)] == list(self.state.values())
        assert self.pages.num_available == self.count(FREE) + self.count(CACHED)


Pages.TestCase.settings = cases(80, stateful_step_count=30)
test_page_has_one_owner_and_accounting_closes = Pages.TestCase


def test_a_long_enough_run_is_preferred_to_pieces() -> None:
    pages = PageAllocator(64)
    holes = [pages.allocate(4) for _ in range(16)]
    for hole in holes[::2]:
        pages.free(hole)
    pages.free(holes[1])
    got = pages.allocate(8)
    assert got == list(range(got[0], got[0] + 8))
    pieces = pages.allocate(20)
    assert len(list(runs_of(pieces))) == 5


def test_a_pool_of_millions_costs_nothing_at_start() -> None:
    pages = PageAllocator(4 << 20)
    got = pages.allocate(5)
    assert len(list(runs_of(got))) == 1
    assert pages.num_free == (4 << 20) - 5


@pytest.mark.parametrize("operation", ["free", "unfence", "fence"])
def test_a_page_in_the_wrong_state_is_refused(operation: str) -> None:
    pages = PageAllocator(8)
    with pytest.raises(AccountingError, match="not all in state"):
        getattr(pages, operation)([3])


@given(st.lists(st.integers(0, 30)))
def test_runs_of_say_the_same_pages(pages: list[int]) -> None:
    assert [p for start, length in runs_of(pages) for p in range(start, start + length)] == pages
