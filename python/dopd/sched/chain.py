"""The hash chain over a sequence's tokens, page by page: under what its full pages are found.

Router and workers compute the same chain; router/src/streams/prefix.rs is the other one. Link 0 is
the salt that the router gives a sequence (its tenant and cache salt), link i is sha256 over link
i - 1 and the token ids of page i as little-endian u32, cut to 128 bits.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from dataclasses import dataclass, field

SALT_BYTES = 16
LINK_BYTES = 16


def next_link(before: bytes, tokens: list[int]) -> bytes:
    """One link: over the one before (at first the salt) and a page's tokens."""
    words = array("I", tokens)
    if sys.byteorder == "big":
        words.byteswap()
    return hashlib.sha256(before + words.tobytes()).digest()[:LINK_BYTES]


@dataclass(slots=True, eq=False)
class Chain:
    """The links of one sequence.

    links: of its first pages, as far as they were needed.
    known: tokens of the prompt from position known_from on; None: they did not come with the
        sequence, and the chain ends with its links.
    num_kept: first pages that the cache has seen.
    """

    salt: bytes
    links: list[bytes] = field(default_factory=list, repr=False)
    known: list[int] | None = field(default_factory=list, repr=False)
    known_from: int = 0
    num_kept: int = 0

    def tokens(self, page: int, page_size: int, answer: list[int]) -> list[int] | None:
        """What a full page was computed from; None: that is not known here."""
        start = page * page_size - self.known_from
        if self.known is None or start < 0:
            return None
        end, num_known = start + page_size, len(self.known)
        tokens = self.known[start:end]
        if end > num_known:
            tokens = tokens + answer[max(start - num_known, 0) : end - num_known]
        return tokens

    def extend(self, num_pages: int, page_size: int, answer: list[int]) -> int:
        """Links of the first num_pages, which are full. Returns how many there are of them."""
        links = self.links
        for page in range(len(links), num_pages):
            tokens = self.tokens(page, page_size, answer)
            if tokens is None:
                return page
            links.append(next_link(links[-1] if links else self.salt, tokens))
        return num_pages
