"""What a transport is, and what it promises.

A transport moves pages from the pool of a source to the pool of a destination and carries the four
messages of a hand-off. It knows links, nonces and pages, nothing of seats. Its events are called
from its own threads; whoever takes them (`worker/desk.py`) brings a lock.

Contract of every transport (one suite of tests runs on all: tests/unit/transfer/test_contract.py):

T1  End is delivered only after every earlier Write of its nonce has landed.
T2  No Write is delivered twice, and none after End.
T3  `written` means that the source page will not be read again, and that the data has landed or
    that T1 orders it.
T4  `abort(); synchronise()` at the destination returns only when nothing of that link can land any
    more, whatever the peer does. `link_down` is reported after that, once, and is the last event
    of the link.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from dopd.types import Endpoint, LinkEnd, Peer

PROTOCOL = 1
"""Version of the frames; both ends must have the same."""

START_BYTES_PER_S = 1e9
"""What a link is taken to carry until it was measured: between 10 GbE and loopback."""


class Link(Protocol):
    """One connection between two workers. Its calls never block and never raise: they queue.

    What is queued on a link that is down is dropped; `link_down` tells.
    """

    @property
    def id(self) -> int:
        """Unique in this process: a link that comes up again has a new one (its generation)."""
        ...

    @property
    def transport(self) -> str:
        """Name of the transport that made it."""
        ...

    @property
    def fence_s(self) -> float:
        """Least age of a fence for which it is aborted; the worker's own is longer if this is 0."""
        ...

    @property
    def bytes_per_s(self) -> float:
        """Measured rate of writes; START_BYTES_PER_S until then."""
        ...

    def begin(self, nonce: int) -> None:
        """Show a ticket."""
        ...

    def go(self, nonce: int, pages: list[int], first: int = 0) -> None:
        """Answer Begin: a peer may write these pages from now on, the shipment's from `first`."""
        ...

    def write(self, nonce: int, first: int, pages: list[int]) -> None:
        """Write our pages to the shipment's pages first .. first + len(pages)."""
        ...

    def end(self, end: LinkEnd) -> None:
        """The last word of a shipment. Not ok: queued writes of this nonce may be dropped."""
        ...

    def abort(self, reason: str) -> None:
        """Shut the link. Returns at once; what was under way may still land."""
        ...

    def synchronise(self, timeout_s: float) -> bool:
        """Wait until nothing of this link can land any more (T4); False: not yet."""
        ...


class LinkEvents(Protocol):
    """What a transport tells its worker. Called from the transport's threads."""

    def wants(self, peer: Peer) -> bool:
        """Whether a link to this peer is still worth dialling."""
        ...

    def link_up(self, link: Link, peer: Peer | None) -> None:
        """A link is up; `peer` is the destination if we are the source, None if we listen."""
        ...

    def link_down(self, link: Link) -> None:
        """The link is down and synchronised."""
        ...

    def begin(self, link: Link, nonce: int) -> None:
        """A source shows a ticket."""
        ...

    def go(self, link: Link, nonce: int, num_pages: int, first: int = 0) -> None:
        """A destination is ready for so many pages, the shipment's from `first` on."""
        ...

    def targets(self, link: Link, nonce: int, first: int, count: int) -> list[int]:
        """Our pages that a Write names. Raises LinkError if it must not land."""
        ...

    def landed(self, link: Link, nonce: int, first: int, count: int) -> None:
        """A Write is in place."""
        ...

    def written(self, link: Link, nonce: int, count: int) -> None:
        """Our writes of so many pages are completed (T3)."""
        ...

    def end(self, link: Link, end: LinkEnd) -> None:
        """The last word of a source."""
        ...


class Transport(Protocol):
    """All links of one worker."""

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Where others dial us, best way first."""
        ...

    def dial(self, peer: Peer) -> None:
        """See to a link to this peer, with back-off, as long as it is wanted. Returns at once."""
        ...

    def close(self) -> None:
        """Abort and synchronise every link, stop listening."""
        ...


@dataclass(frozen=True, slots=True)
class LinkIdentity:
    """What one end says of itself in the handshake. The other end must have the same layout."""

    worker: str
    incarnation: int
    layout_hash: int
    join_token: str = field(repr=False)
