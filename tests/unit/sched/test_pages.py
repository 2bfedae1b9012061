"""The page allocator under any sequence of operations."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from dopd.errors import AccountingError
from dopd.sched.pages import CACHED, FENCED, FREE, OWNED, PageAllocator, runs_of

NUM_PAGES = 40


class Pages(RuleBasedStateMachine):
    """`page_has_one_owner` and `accounting_closes`, against a dict of who has what."""

    owned = Bundle("owned")
    shared = Bundle("shared")
    fenced = Bundle("fenced")
    cached = Bundle("cached")

    def __init__(self) -> None:
        super().__init__()
        self.pages = PageAllocator(NUM_PAGES)
        self.state = dict.fromkeys(range(NUM_PAGES), FREE)

    def move(self, pages: tuple[int, ...], old: int, new: int) -> tuple[int, ...]:
        for page in pages:
            assert self.state[page] == old
            self.state[page] = new
        return pages

    @rule(target=owned, num_pages=st.integers(0, NUM_PAGES + 3))
    def allocate(self, num_pages: int) -> tuple[int, ...]:
        free = sum(state == FREE for state in self.state.values())
        got = self.pages.allocate(num_pages)
        assert (got is None) == (num_pages > free)
        assert got is None or len(set(got)) == len(got) == num_pages
        return self.move(tuple(got or ()), FREE, OWNED)

    @rule(pages=consumes(owned))
    def free(self, pages: tuple[int, ...]) -> None:
        self.pages.free(pages)
        self.move(pages, OWNED, FREE)

    @rule(target=shared, pages=consumes(owned), num_owners=st.integers(2, 4))
    def share(self, pages: tuple[int, ...], num_owners: int) -> tuple[tuple[int, ...], int]:
        for _ in range(num_owners - 1):
            self.pages.share(pages)
        return pages, num_owners

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
            self.move(pages, OWNED, FREE)
        return (pages, num_owners - 1) if num_owners > 1 else ((), 0)

    @rule(target=fenced, pages=consumes(owned))
    def fence(self, pages: tuple[int, ...]) -> tuple[int, ...]:
        self.pages.fence(pages)
        return self.move(pages, OWNED, FENCED)

    @rule(pages=consumes(fenced))
    def unfence(self, pages: tuple[int, ...]) -> None:
        self.pages.unfence(pages)
        self.move(pages, FENCED, FREE)

    @rule(target=cached, pages=consumes(owned))
    def cache(self, pages: tuple[int, ...]) -> tuple[int, ...]:
        self.pages.cache(pages)
        return self.move(pages, OWNED, CACHED)

    @rule(pages=cached)
    def hold_and_drop(self, pages: tuple[int, ...]) -> None:
        self.pages.hold(pages)
        if pages and self.state[pages[0]] == CACHED:
            with pytest.raises(AccountingError, match="still read"):
                self.pages.evict(pages)
        self.pages.drop(pages)

    @rule(pages=consumes(cached))
    def evict(self, pages: tuple[int, ...]) -> None:
        self.pages.evict(pages)
        self.move(pages, CACHED, FREE)

    @invariant()
    def accounting_closes(self) -> None:
        self.pages.check()
        assert [self.pages.state(page) for page in range(NUM_PAGES)] == list(self.state.values())


Pages.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
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


@pytest.mark.parametrize("operation", ["free", "unfence", "cache", "fence"])
def test_a_page_in_the_wrong_state_is_refused(operation: str) -> None:
    pages = PageAllocator(8)
    with pytest.raises(AccountingError, match="not all in state"):
        getattr(pages, operation)([3])


@given(st.lists(st.integers(0, 30)))
def test_runs_of_say_the_same_pages(pages: list[int]) -> None:
    assert [p for start, length in runs_of(pages) for p in range(start, start + length)] == pages
