"""The stream to the router as the desk sees it. `attach` brings it, the step loop reports to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dopd import wire
from dopd.types import KvCheck, KvScrub, StepPolicy


class Session(Protocol):
    """The stream to the router, as the desk sees it."""

    id: int

    @property
    def num_waiting(self) -> int:
        """Reports that are queued and not sent."""
        ...

    def report(self, message: wire.AttachRequest) -> None:
        """Queue one report; never blocks."""
        ...

    def check_lease(self) -> bool:
        """Whether the router was heard in time; if not, the stream is broken off."""
        ...

    def fail(self, reason: str) -> None:
        """Break the stream off."""
        ...


@dataclass(frozen=True, slots=True)
class Started:
    """A session begins. The rest is what its router told all workers."""

    session: Session
    kv_check: KvCheck = KvCheck.OFF
    kv_scrub: KvScrub = KvScrub.NEVER
    prefix_cache: bool = False
    step_policy: StepPolicy = StepPolicy()


@dataclass(frozen=True, slots=True)
class Lost:
    """A session is over."""

    session: Session
