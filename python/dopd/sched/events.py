"""What goes into the seat table and what comes out of it: plain records.

Links are named by small process-unique numbers, so that a message of an old link (an old
generation) can never be taken for one of a new link.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from dopd.sched.sequence import Sequence
from dopd.types import Close, CloseReason, Grant, LinkEnd, Open, Peer, Send


class State(enum.IntEnum):
    """Columns of the table "Seat at a worker" of handoff.md, in its order."""

    NONE = 0
    RESERVED = 1
    EXPOSED = 2
    RUN = 3
    WANT = 4
    BEGUN = 5
    GOING = 6
    FROZEN = 7
    SENT = 8


def is_stepping(state: State) -> bool:
    """Whether a seat takes part in steps."""
    return State.RUN <= state <= State.GOING


# Events. From the router: Open, Send (with a grant), Stay (Send without one), Close, SessionLost.


@dataclass(frozen=True, slots=True)
class Stay:
    """The router gave up the destination: go on here."""

    slot: int


@dataclass(frozen=True, slots=True)
class SessionLost:
    """Stream end, or lease over. Applies to every seat."""


# From links.


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A link to `peer` came up; shipments to it may begin."""

    link: int
    peer: Peer


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The own end of a link is down **and synchronised**: nothing of it can land any more."""

    link: int


@dataclass(frozen=True, slots=True)
class Begin:
    """A source shows a ticket."""

    link: int
    nonce: int


@dataclass(frozen=True, slots=True)
class Go:
    """A destination has named its pages, those of the shipment from `first` on; only their number
    matters here."""

    link: int
    nonce: int
    num_pages: int
    first: int = 0


@dataclass(frozen=True, slots=True)
class Landed:
    """Pages first .. first + count of a shipment are in their place."""

    link: int
    nonce: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class EndOk:
    """The last word of a source, with everything that decoding needs."""

    link: int
    end: LinkEnd


@dataclass(frozen=True, slots=True)
class EndAborted:
    """The last word of a source that gave up."""

    link: int
    nonce: int


@dataclass(frozen=True, slots=True)
class Written:
    """The transport completed `count` more pages of a shipment (contract T3)."""

    link: int
    nonce: int
    count: int


# From the step loop.


@dataclass(frozen=True, slots=True)
class Computed:
    """The sequence's KV grew: full pages may travel."""

    slot: int


@dataclass(frozen=True, slots=True)
class Boundary:
    """Between two steps. `budget_bytes`: what the link writes in the time of one decode step."""

    slot: int
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The last token was made."""

    slot: int
    reason: CloseReason


@dataclass(frozen=True, slots=True)
class Dropped:
    """The seat's pages are needed (preempted), or the engine failed under it alone (error)."""

    slot: int
    reason: CloseReason
    message: str = ""


Event = (
    Open
    | Send
    | Stay
    | Close
    | SessionLost
    | LinkUp
    | LinkDown
    | Begin
    | Go
    | Landed
    | EndOk
    | EndAborted
    | Written
    | Computed
    | Boundary
    | Finished
    | Dropped
)


# Effects, to be carried out in order, under the lock under which the event was handled.


@dataclass(frozen=True, slots=True)
class Opened:
    """Report: an import seat is reserved, here is its ticket."""

    slot: int
    grant: Grant


@dataclass(frozen=True, slots=True)
class Reused:
    """Report: a seat begins with so many tokens of its prompt computed already."""

    slot: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """Report: an import is complete and checked; `tail`: answer tokens that the router may lack."""

    slot: int
    pos: int
    tail: list[int] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Closed:
    """Report: the seat is gone. Exactly one for each Open."""

    slot: int
    reason: CloseReason
    message: str = ""
    retry_ms: int = 0


@dataclass(frozen=True, slots=True)
class Scrub:
    """Zero these pages before a step or a peer reaches them."""

    pages: list[int] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Joins:
    """The sequence takes part in steps from now on."""

    sequence: Sequence


@dataclass(frozen=True, slots=True)
class Leaves:
    """The sequence takes part in steps no more."""

    sequence: Sequence


@dataclass(frozen=True, slots=True)
class Dial:
    """A shipment wants a link to this peer."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class SendBegin:
    """Show the ticket."""

    link: int
    nonce: int


@dataclass(frozen=True, slots=True)
class SendGo:
    """Tell the source our pages: from now on a peer may write them."""

    link: int
    nonce: int
    pages: list[int] = field(repr=False)
    first: int = 0


@dataclass(frozen=True, slots=True)
class WritePages:
    """Write own `pages` to the shipment's pages first .. first + len(pages)."""

    link: int
    nonce: int
    first: int
    pages: list[int] = field(repr=False)


@dataclass(frozen=True, slots=True)
class SendEnd:
    """The last word; not ok: forget what is still queued for this nonce."""

    link: int
    end: LinkEnd


@dataclass(frozen=True, slots=True)
class AbortLink:
    """Its oldest fence is overdue: shut the link, if it has no longer limit of its own, and report
    LinkDown when nothing can land. Said again while that fence stands."""

    link: int
    age_s: float


LinkEffect = Dial | SendBegin | SendGo | WritePages | SendEnd | AbortLink
Effect = Opened | Reused | Arrived | Closed | Scrub | Joins | Leaves | LinkEffect
