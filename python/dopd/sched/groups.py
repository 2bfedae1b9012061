"""Sequences with one prompt (the choices of a request): one computes it, all share its pages.

Owned by the seat table, called under its lock and between steps. The first of a group computes; the
others wait until every page that the prompt fills is written, then hold these pages with it instead
of their own, which are given back, and compute only what follows: at least the prompt's last token,
to draw from. So a shared page is complete and never written again, by anybody. If the one that
computes goes, the next takes over what it has written.
"""

from __future__ import annotations

from dopd.sched.pages import PageAllocator
from dopd.sched.sequence import Sequence


class PromptGroups:
    """The groups of one session; bounded by its seats."""

    def __init__(self, pages: PageAllocator, page_size: int) -> None:
        self._pages = pages
        self._page_size = page_size
        # Members in the order of their Opens. Only sequences with a page to share are in.
        self._members: dict[int, list[Sequence]] = {}
        # Groups in which somebody waits.
        self._waiting: set[int] = set()

    def join(self, sequence: Sequence) -> None:
        """A compute seat was opened; nothing is computed but what it found in the cache."""
        if not sequence.group or not self._shareable(sequence):
            return
        members = self._members.setdefault(sequence.group, [])
        if members and not is_alike(members[0], sequence):
            return
        # One that tells log probabilities of the prompt has to compute it itself.
        shareable = self._shareable(sequence)
        if members and sequence.prompt_logprobs is None and sequence.computed < shareable:
            sequence.awaited = shareable
            self._waiting.add(sequence.group)
        members.append(sequence)
        self._settle(sequence.group)

    def leave(self, sequence: Sequence) -> None:
        """A seat is about to free its pages."""
        members = self._members.get(sequence.group, [])
        if sequence not in members:
            return
        members.remove(sequence)
        if all(member.awaited for member in members) and members and not sequence.awaited:
            written = min(sequence.computed, self._shareable(sequence))
            self._share(sequence, members[0], written // self._page_size)
        if members:
            self._settle(sequence.group)
        else:
            del self._members[sequence.group]
            self._waiting.discard(sequence.group)

    def settle(self) -> None:
        """After a step: whoever waits for pages that are written now, shares them."""
        for group in sorted(self._waiting):
            self._settle(group)

    def _settle(self, group: int) -> None:
        members = self._members[group]
        waiting = [member for member in members if member.awaited]
        for member in members:
            if not member.awaited and member.computed >= self._shareable(member):
                for other in waiting:
                    self._share(member, other, other.awaited // self._page_size)
                break
        if not any(member.awaited for member in members):
            self._waiting.discard(group)

    def _share(self, source: Sequence, target: Sequence, num_pages: int) -> None:
        """Let target hold source's first pages instead of its own, and go on behind them. Those
        that it found in the cache stay: they may be on their way to a peer already."""
        target.awaited = 0
        first = target.computed // self._page_size
        if num_pages <= first:
            return
        shared, own = source.pages[first:num_pages], target.pages[first:num_pages]
        self._pages.share(shared)
        # In place: the sequence's row holds the same list.
        target.pages[first:num_pages] = shared
        self._pages.free(own)
        target.computed = num_pages * self._page_size

    def _shareable(self, sequence: Sequence) -> int:
        """Prompt tokens on pages that the prompt fills before its last token."""
        return (sequence.prompt_tokens - 1) // self._page_size * self._page_size


def is_alike(one: Sequence, other: Sequence) -> bool:
    """Whether two may share pages: tenants never do, whatever their router says of groups."""
    return one.tenant == other.tenant and one.prompt == other.prompt
