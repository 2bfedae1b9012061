"""Which links the router is told of, and when."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from dopd.sched import events as ev
from dopd.transfer.base import START_BYTES_PER_S
from dopd.types import Endpoint, LinkState, Peer
from dopd.worker import links
from dopd.worker.links import Links


class Desk:
    """The link's side of one: `links`, and the events that came."""

    def __init__(self) -> None:
        self.events: list[ev.Event] = []
        seats: Any = None
        self.links = Links(threading.Condition(), seats, self.events.append)


class One:
    """A link that is up."""

    bytes_per_s = START_BYTES_PER_S

    def __init__(self, number: int, transport: str = "shm") -> None:
        self.id = number
        self.transport = transport
        self.fence_s = 0.0
        self.reasons: list[str] = []

    def abort(self, reason: str) -> None:
        self.reasons.append(reason)


def up(desk: Desk, link: Any, name: str | None) -> None:
    peer = None if name is None else Peer(name, 1, (Endpoint("shm", "x"),))
    desk.links.link_up(link, peer)


@pytest.mark.parametrize(("fence_s", "age_s", "is_aborted"), [(0, 0.5, True), (2, 1.9, False)])
def test_a_link_is_aborted_for_a_fence_of_its_own_age(
    fence_s: float, age_s: float, is_aborted: bool
) -> None:
    """A communicator takes seconds to make anew, so a slow source has longer."""
    desk, link = Desk(), One(1, "nccl")
    link.fence_s = fence_s
    up(desk, link, None)
    desk.links.act(ev.AbortLink(1, age_s))
    assert bool(link.reasons) == is_aborted
    desk.links.act(ev.AbortLink(1, age_s + fence_s))
    assert link.reasons[-1].startswith("the source said no End for")


def test_links_on_which_we_ship_are_told_once_until_they_change() -> None:
    desk = Desk()
    first, second, incoming = One(1), One(2, "tcp"), One(3)
    assert desk.links.take_news(7, 0.0) is None
    up(desk, first, "d0")
    up(desk, incoming, None)
    assert desk.links.has_news
    assert desk.links.take_news(7, 0.0) == [LinkState("d0", "shm", 0)]
    assert not desk.links.has_news
    assert desk.links.take_news(7, 0.1) is None
    up(desk, second, "d1")
    told = [LinkState("d0", "shm", 0), LinkState("d1", "tcp", 0)]
    assert desk.links.take_news(7, 0.2) == told
    desk.links.link_down(incoming)  # type: ignore[arg-type]
    assert not desk.links.has_news
    desk.links.link_down(first)  # type: ignore[arg-type]
    assert desk.links.take_news(7, 0.3) == told[1:]
    desk.links.link_down(second)  # type: ignore[arg-type]
    assert desk.links.take_news(7, 0.4) == []
    assert desk.links.take_news(7, 99.0) is None


def test_a_new_session_is_told_everything_again() -> None:
    desk = Desk()
    up(desk, One(1), "d0")
    assert desk.links.take_news(7, 0.0) is not None
    assert desk.links.take_news(8, 0.1) == [LinkState("d0", "shm", 0)]
    assert desk.links.take_news(8, 0.2) is None


def test_a_rate_is_news_when_it_is_another_and_not_all_the_time() -> None:
    desk = Desk()
    link = One(1)
    up(desk, link, "d0")
    desk.links.take_news(7, 0.0)
    link.bytes_per_s = 4e9
    assert desk.links.take_news(7, 0.9) is None
    assert desk.links.take_news(7, 1.0) == [LinkState("d0", "shm", 4_000_000_000)]
    link.bytes_per_s = 4.9e9
    assert desk.links.take_news(7, 2.0) is None
    link.bytes_per_s = 2.9e9
    assert desk.links.take_news(7, 2.5) is None
    assert desk.links.take_news(7, 3.0) == [LinkState("d0", "shm", 2_900_000_000)]


def test_no_more_are_told_than_a_report_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "TOLD_MAX", 3)
    desk = Desk()
    for number in range(5):
        up(desk, One(number), f"d{number}")
    told = desk.links.take_news(7, 0.0)
    assert told is not None and [one.peer for one in told] == ["d0", "d1", "d2"]
