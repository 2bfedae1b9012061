"""The page allocator: every page is FREE, OWNED, CACHED or FENCED, and exactly one of these.

Owns the bookkeeping, not the memory. Called by the seat table only, under its lock. Free pages are
kept as maximal runs, so that a sequence gets few long runs (a transport then moves them with few
system calls) and so that a pool of millions of pages costs nothing at start.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator

from dopd.errors import AccountingError

FREE, OWNED, CACHED, FENCED = range(4)

Run = tuple[int, int]
"""First page and number of pages."""


def runs_of(pages: Iterable[int]) -> Iterator[Run]:
    """Maximal runs of ascending neighbours, in the order given."""
    start = length = 0
    for page in pages:
        if length and page == start + length:
            length += 1
            continue
        if length:
            yield start, length
        start, length = page, 1
    if length:
        yield start, length


class FreeRuns:
    """Disjoint maximal runs of free pages, found by size (powers of two) and by either end."""

    def __init__(self, num_pages: int) -> None:
        self._length_at: dict[int, int] = {}
        self._start_before: dict[int, int] = {}
        # Class k holds the starts of runs of 2^k .. 2^(k+1) - 1 pages; dicts keep an order.
        self._classes: list[dict[int, None]] = [{} for _ in range(num_pages.bit_length() + 1)]
        if num_pages:
            self._insert(0, num_pages)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._length_at.items())

    def take(self, num_pages: int) -> list[Run]:
        """Remove num_pages, which the caller knows to be free: one run if one is long enough."""
        taken: list[Run] = []
        while num_pages:
            start, length = self._pick(num_pages)
            self._remove(start, length)
            used = min(length, num_pages)
            if used < length:
                self._insert(start + used, length - used)
            taken.append((start, used))
            num_pages -= used
        return taken

    def give(self, start: int, length: int) -> None:
        """Add a run and join it with its neighbours."""
        before = self._start_before.get(start)
        if before is not None:
            before_length = self._length_at[before]
            self._remove(before, before_length)
            start, length = before, before_length + length
        after_length = self._length_at.get(start + length)
        if after_length is not None:
            self._remove(start + length, after_length)
            length += after_length
        self._insert(start, length)

    def _pick(self, num_pages: int) -> Run:
        """A run of a class where every run is long enough, else the last of the largest class."""
        fits = (num_pages - 1).bit_length()
        for index in range(fits, len(self._classes)):
            if self._classes[index]:
                start = next(reversed(self._classes[index]))
                return start, self._length_at[start]
        for index in reversed(range(min(fits, len(self._classes)))):
            if self._classes[index]:
                start = next(reversed(self._classes[index]))
                return start, self._length_at[start]
        raise AssertionError(f"{num_pages} pages asked of an empty pool")

    def _insert(self, start: int, length: int) -> None:
        self._length_at[start] = length
        self._start_before[start + length] = start
        self._classes[length.bit_length() - 1][start] = None

    def _remove(self, start: int, length: int) -> None:
        del self._length_at[start]
        del self._start_before[start + length]
        del self._classes[length.bit_length() - 1][start]


class PageAllocator:
    """The states of all pages of one pool. free + owned + cached + fenced = total, always."""

    def __init__(self, num_pages: int) -> None:
        assert num_pages > 0, "a pool has at least one page"
        self.num_pages = num_pages
        self._counts = [num_pages, 0, 0, 0]
        # One byte a page. Zero is FREE: the memory is touched only where pages were ever used.
        self._state = bytearray(num_pages)
        self._free = FreeRuns(num_pages)
        # Cached pages, those to be evicted first in front.
        self._cached: OrderedDict[int, None] = OrderedDict()
        # Pages that are worth keeping when nobody owns them any more, and who hears that one
        # is evicted.
        self._kept: Container[int] = ()
        self._on_evict: Callable[[int], None] = lambda page: None
        # Told of each run that became free.
        self.on_free: Callable[[int, int], None] = lambda start, length: None
        # Owners of each owned page beyond the first.
        self._shares: dict[int, int] = {}

    def keep_through(self, kept: Container[int], on_evict: Callable[[int], None]) -> None:
        """Whose pages stay when they are freed: those in `kept`, until `on_evict`."""
        self._kept, self._on_evict = kept, on_evict

    @property
    def num_free(self) -> int:
        """Pages without owner and content."""
        return self._counts[FREE]

    @property
    def num_available(self) -> int:
        """Pages that `allocate` can hand out: free ones, and cached ones that it evicts."""
        return self._counts[FREE] + self._counts[CACHED]

    @property
    def num_owned(self) -> int:
        """Pages that seats hold; a shared one counts once."""
        return self._counts[OWNED]

    @property
    def num_cached(self) -> int:
        """Pages kept for their content."""
        return self._counts[CACHED]

    @property
    def num_fenced(self) -> int:
        """Pages that belong to nobody, but that a peer may still write."""
        return self._counts[FENCED]

    def state(self, page: int) -> int:
        """FREE, OWNED, CACHED or FENCED."""
        return self._state[page]

    def allocate(self, num_pages: int) -> list[int] | None:
        """FREE -> OWNED, or None if fewer are available. Evicts what it needs. Prefers one
        contiguous run."""
        if num_pages > self.num_available:
            return None
        if num_pages > self.num_free:
            self.evict(num_pages - self.num_free)
        runs = self._free.take(num_pages)
        for start, length in runs:
            self._move(start, length, FREE, OWNED)
        return list(itertools.chain.from_iterable(range(s, s + n) for s, n in runs))

    def share(self, pages: Iterable[int]) -> None:
        """One more owner of each page; it is OWNED, and counts once, until the last one frees it.
        A cached one is evicted no more. Only pages that nobody writes any more."""
        for page in pages:
            if page in self._cached:
                del self._cached[page]
                self._move(page, 1, CACHED, OWNED)
            elif self._state[page] == OWNED:
                self._shares[page] = self._shares.get(page, 0) + 1
            else:
                raise AccountingError(f"page {page} is not owned")

    def num_owners(self, page: int) -> int:
        """Seats that hold a page."""
        return self._shares.get(page, 0) + 1 if self._state[page] == OWNED else 0

    def free(self, pages: Iterable[int]) -> None:
        """OWNED -> FREE: the pages of a closed seat that no peer can write. Shared ones stay, and
        those that are worth keeping are CACHED; the last of these is evicted first."""
        if self._shares:
            pages = [page for page in pages if not self._unshare(page)]
        kept: list[int] = []
        gone: list[int] = []
        for page in pages:
            (kept if page in self._kept else gone).append(page)
        self._release(gone, OWNED)
        for page in reversed(kept):
            self._move(page, 1, OWNED, CACHED)
            self._cached[page] = None

    def fence(self, pages: Iterable[int]) -> None:
        """OWNED -> FENCED: the seat is gone, but a peer was told these page numbers."""
        for start, length in runs_of(pages):
            if not self._shares.keys().isdisjoint(range(start, start + length)):
                raise AccountingError(f"a page of {start}..{start + length} is shared")
            if any(page in self._kept for page in range(start, start + length)):
                raise AccountingError(f"a page of {start}..{start + length} is kept for others")
            self._move(start, length, OWNED, FENCED)

    def unfence(self, pages: Iterable[int]) -> None:
        """FENCED -> FREE. Only after the shipment's End, or its link is down and synchronised."""
        self._release(pages, FENCED)

    def evict(self, num_pages: int) -> None:
        """CACHED -> FREE: so many, those first that were freed longest ago."""
        gone: list[int] = []
        for _ in range(num_pages):
            page, _ = self._cached.popitem(last=False)
            self._on_evict(page)
            gone.append(page)
        self._release(sorted(gone), CACHED)

    def check(self) -> None:
        """Compare counts, states and free runs. Linear in the pool. Raises AccountingError."""
        counts = [self._state.count(state) for state in range(4)]
        covered = sorted(self._free)
        ends = (start + length for start, length in covered)
        facts = {
            "counts add up": sum(self._counts) == self.num_pages,
            "counts are those of the states": counts == self._counts,
            "free runs hold what is free": sum(n for _, n in covered) == self.num_free,
            "free runs are free": all(
                self._state.count(FREE, start, start + n) == n for start, n in covered
            ),
            "free runs are apart": all(
                end < after for end, (after, _) in zip(ends, covered[1:], strict=False)
            ),
            "what is cached is kept": len(self._cached) == self.num_cached
            and all(self._state[page] == CACHED and page in self._kept for page in self._cached),
            "shares are of owned pages": all(
                self._state[page] == OWNED and n > 0 for page, n in self._shares.items()
            ),
        }
        wrong = [fact for fact, holds in facts.items() if not holds]
        if wrong:
            raise AccountingError(f"not so of {self._counts}: {', '.join(wrong)}")

    def _unshare(self, page: int) -> bool:
        """One owner fewer, if there is more than one."""
        others = self._shares.pop(page, 0)
        if others > 1:
            self._shares[page] = others - 1
        return others > 0

    def _release(self, pages: Iterable[int], old: int) -> None:
        for start, length in runs_of(pages):
            self._move(start, length, old, FREE)
            self._free.give(start, length)
            self.on_free(start, length)

    def _move(self, start: int, length: int, old: int, new: int) -> None:
        end = start + length
        if self._state.count(old, start, end) != length:
            found = bytes(self._state[start:end])
            raise AccountingError(f"pages {start}..{end} are not all in state {old}: {found!r}")
        self._state[start:end] = bytes([new]) * length
        self._counts[old] -= length
        self._counts[new] += length
