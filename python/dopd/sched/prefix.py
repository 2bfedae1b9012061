"""The prefix cache: full pages are found again by what was computed into them, and for whom.

Owned by the seat table, called under its lock. A page that a sequence has filled gets a key: the
salt of the sequence and the link of its hash chain (`sched/chain.py`). A later sequence that begins
with the same links holds the same pages and computes what follows. Pages with a key are never
written again. They stay with their sequences as any other; when the last one leaves, the allocator
keeps them as CACHED and evicts them where pages are needed: those first that were used longest ago,
and the end of a prompt before its beginning, so that what stays can be found.

Tenants cannot meet: a key begins with the whole salt, and the page remembers its tenant.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, field

from dopd.errors import AccountingError
from dopd.sched.chain import LINK_BYTES, SALT_BYTES, Chain
from dopd.sched.pages import PageAllocator
from dopd.sched.sequence import Sequence
from dopd.types import Compute, Open

NEWS_MAX = 4096
"""Most hashes in one report; more follow in the next ones. The router takes no more."""

NEVER = sys.maxsize


@dataclass(frozen=True, slots=True)
class Kept:
    """A page that can be found. tokens: only where they are compared, and known."""

    key: bytes
    tenant: int
    tokens: list[int] | None = field(repr=False)


class PrefixCache:
    """See the module."""

    def __init__(self, pages: PageAllocator, page_size: int) -> None:
        self.is_on = False
        # Keep the tokens of pages, and compare them at each hit (--debug-checks).
        self.is_compared = False
        self._pages = pages
        self._page_size = page_size
        # Both directions of the same.
        self._page_of: dict[bytes, int] = {}
        self._kept: dict[int, Kept] = {}
        # What the router has not heard: whether a hash is there now.
        self._news: dict[int, bool] = {}
        pages.keep_through(self._kept, self._forget)

    def __len__(self) -> int:
        """Pages that can be found."""
        return len(self._kept)

    def begin_session(self, is_on: bool) -> None:
        """A router listens: it will hear of all that is here. Off: all is given up."""
        self.is_on = is_on
        if not is_on:
            self._pages.evict(self._pages.num_cached)
            assert not self._kept, "seats outlived their session"
        self._news = {wire_hash(key): True for key in self._page_of}

    def chain(self, event: Open) -> Chain | None:
        """The chain of a new sequence; None: it neither uses nor fills the cache."""
        if not self.is_on or not event.prefix_salt:
            return None
        kind = event.kind
        if isinstance(kind, Compute):
            return Chain(event.prefix_salt, known=kind.prompt)
        prefix = kind.prefix
        links = [prefix[at : at + LINK_BYTES] for at in range(0, len(prefix), LINK_BYTES)]
        known_from = len(links) * self._page_size
        is_known = known_from + len(kind.tail) == event.prompt_tokens
        return Chain(event.prefix_salt, links, kind.tail if is_known else None, known_from)

    def begin(self, chain: Chain, event: Open) -> list[int]:
        """The pages that a sequence begins with. It holds them from now on.

        At least one page stays its own, and at least one token is left to compute. Raises
        AccountingError if a page was computed from other tokens (debug checks only).
        """
        if event.prompt_logprobs is not None:
            # It has to compute every position that it tells of.
            return []
        answer = event.kind.answer if isinstance(event.kind, Compute) else []
        most = (event.prompt_tokens + len(answer) - 1) // self._page_size
        found: list[int] = []
        for index in range(min(most, event.pages - 1)):
            if chain.extend(index + 1, self._page_size, answer) == index:
                break
            page = self._page_of.get(chain.salt + chain.links[index])
            if page is None or self._kept[page].tenant != event.tenant:
                break
            self._compare(page, chain.tokens(index, self._page_size, answer))
            found.append(page)
        self._pages.share(found)
        chain.num_kept = len(found)
        return found

    def keep(self, sequence: Sequence) -> None:
        """After a step or an arrival: what is full by now can be found. Says when to ask again."""
        chain = sequence.chain
        sequence.keeps_at = NEVER
        if chain is None:
            return
        full = sequence.computed // self._page_size
        end = chain.extend(full, self._page_size, sequence.answer)
        for index in range(chain.num_kept, end):
            key, page = chain.salt + chain.links[index], sequence.pages[index]
            # Two may compute the same at the same time: the first one is found.
            if key not in self._page_of and page not in self._kept:
                tokens = None
                if self.is_compared:
                    tokens = chain.tokens(index, self._page_size, sequence.answer)
                self._page_of[key] = page
                self._kept[page] = Kept(key, sequence.tenant, tokens)
                self._news[wire_hash(key)] = True
        chain.num_kept = end
        if end == full:
            sequence.keeps_at = (full + 1) * self._page_size

    @property
    def has_news(self) -> bool:
        """Whether the router has not heard of all changes."""
        return bool(self._news)

    def take_news(self) -> tuple[list[int], list[int]]:
        """Hashes stored and evicted that the router has not heard of; at most NEWS_MAX."""
        words = list(itertools.islice(self._news, NEWS_MAX))
        told = {word: self._news.pop(word) for word in words}
        return [word for word in words if told[word]], [word for word in words if not told[word]]

    def check(self) -> None:
        """Every key has one page, which somebody owns or the allocator caches. Raises
        AccountingError."""
        pages = {page: kept.key for page, kept in self._kept.items()}
        if pages != {page: key for key, page in self._page_of.items()}:
            raise AccountingError(f"{len(pages)} pages are kept, {len(self._page_of)} are found")

    def _compare(self, page: int, tokens: list[int] | None) -> None:
        known = self._kept[page].tokens
        if self.is_compared and known is not None and tokens is not None and known != tokens:
            raise AccountingError(f"page {page} was found for other tokens than its own")

    def _forget(self, page: int) -> None:
        """The page is evicted."""
        kept = self._kept.pop(page)
        del self._page_of[kept.key]
        self._news[wire_hash(kept.key)] = False


def wire_hash(key: bytes) -> int:
    """What the router hears of a key: the first 8 bytes of its link."""
    return int.from_bytes(key[SALT_BYTES : SALT_BYTES + 8], "little")
