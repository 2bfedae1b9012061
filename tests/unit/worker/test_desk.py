"""The desk without threads: what the router asks, what it is told."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence

import pytest

from dopd._gen.dopd.worker.v1 import worker_pb2 as pb
from dopd.engine.mock import MockEngine
from dopd.sched.batch import Batcher
from dopd.types import (
    Close,
    Commands,
    Compute,
    Import,
    Limits,
    Open,
    Result,
    Role,
    Row,
    SetRole,
)
from dopd.worker.loop import StepLoop
from tests.support.fleet import Fleet, Node


class Watched(MockEngine):
    """`during` is called inside of a step."""

    def __init__(self) -> None:
        super().__init__(8)
        self.during: Callable[[], None] = lambda: None

    def step(self, rows: Sequence[Row]) -> list[Result]:
        self.during()
        return super().step(rows)


def attached() -> Node:
    node = Fleet(1, num_pages=8).nodes[0]
    node.attach(1)
    return node


def opened(slot: int, kind: Compute | Import) -> Open:
    return Open(slot, 1, 3, Limits(max_tokens=5), kind)


def test_no_role_undoes_the_drain_of_a_terminated_process() -> None:
    node = attached()
    node.desk.drain()
    node.desk.post(Commands(1, [SetRole(Role.DECODE, drain=False, epoch=9), opened(1, Import())]))
    node.loop.turn()
    (report,) = node.reports
    assert list(report.closed_reasons) == [pb.CLOSE_REASON_REFUSED]
    assert (report.draining, report.role, report.role_epoch) == (True, pb.ROLE_DECODE, 9)
    assert node.desk.is_over


def test_a_grant_is_reported_before_the_step_that_begins_now() -> None:
    node = attached()
    node.desk.post(Commands(1, [opened(1, Compute([1, 2, 3])), opened(2, Import())]))
    node.loop.turn()
    first, second = node.reports
    assert (list(first.opened_slots), first.step_us, list(first.tokens)) == ([2], 0, [])
    assert list(second.token_slots) == [1]
    assert second.step_us > 0


def stepping(node: Node, during: Callable[[], None]) -> None:
    """A turn with a step of slot 1, and what happens in it."""
    engine = Watched()
    engine.during = during
    node.desk.post(Commands(1, [opened(1, Compute([1, 2, 3]))]))
    StepLoop(node.desk, engine).turn()


def test_a_grant_does_not_wait_for_the_step_under_way() -> None:
    node = attached()
    told: list[list[int]] = []

    def during() -> None:
        node.desk.post(Commands(1, [opened(2, Import()), opened(3, Compute([4, 5, 6]))]))
        node.desk.post(Commands(1, [opened(4, Import())]))
        told.extend(list(report.opened_slots) for report in node.reports)

    stepping(node, during)
    # What is no import waits for the step, and what comes behind it does.
    assert told == [[2]]
    assert sorted(node.desk.seats.by_slot) == [1, 2]
    node.loop.turn()
    assert sorted(node.desk.seats.by_slot) == [1, 2, 3, 4]
    assert [list(report.opened_slots) for report in node.reports if report.opened_slots] == [
        [2],
        [4],
    ]


def test_a_grant_of_pages_to_be_zeroed_waits_until_they_are() -> None:
    node = attached()
    told: list[list[int]] = []
    # All pages had an owner, and were poisoned when it left.
    node.desk.post(Commands(1, [dataclasses.replace(opened(1, Import()), pages=8)]))
    node.loop.turn()
    node.desk.post(Commands(1, [Close(1)]))
    node.loop.turn()
    node.reports.clear()

    def during() -> None:
        node.desk.post(Commands(1, [opened(2, Import())]))
        told.extend(list(report.opened_slots) for report in node.reports)

    stepping(node, during)
    (page,) = node.desk.seats.by_slot[2].sequence.pages
    assert not told
    assert list(node.reports[-1].opened_slots) == [2]
    assert not any(bytes(node.pool.page(page)))


def test_a_session_whose_lease_is_over_gets_no_grant_during_a_step() -> None:
    node = attached()
    session = node.session
    assert session is not None

    def during() -> None:
        session.is_alive = False
        node.desk.post(Commands(1, [opened(2, Import())]))

    stepping(node, during)
    assert not any(report.opened_slots for report in node.reports)
    assert 2 not in node.desk.seats.by_slot


def test_debug_logs_name_the_request_and_its_trace(caplog: pytest.LogCaptureFixture) -> None:
    node = attached()
    one = dataclasses.replace(opened(1, Compute([1, 2, 3])), request_id="r9", traceparent="00-ab")
    with caplog.at_level(logging.DEBUG, "dopd.worker"):
        node.desk.post(Commands(1, [one, Close(1)]))
        node.loop.turn()
    assert caplog.messages == [
        "slot 1: open for request r9, trace 00-ab",
        "slot 1: closed, asked: -",
    ]


def test_an_idle_turn_says_nothing() -> None:
    node = attached()
    node.loop.turn()
    node.loop.turn()
    assert not node.reports


def test_heartbeats_carry_the_state_and_no_column() -> None:
    node = attached()
    node.desk.post(Commands(1, [opened(2, Import())]))
    node.desk.take_commands()
    beat = node.desk.heartbeat(1).report
    assert (beat.session, beat.pages_free, list(beat.opened_slots)) == (1, 7, [])
    node.loop.turn()
    assert list(node.reports[0].opened_slots) == [2], "the heartbeat took nothing away"


def test_no_step_is_announced_once_nobody_steps() -> None:
    node = attached()
    node.desk.post(Commands(1, [opened(1, Compute([1, 2, 3]))]))
    node.loop.turn()
    assert node.desk.heartbeat(1).report.next_step_us >= 1, "the next one follows at once"
    node.desk.post(Commands(1, [Close(1)]))
    node.loop.turn()
    assert node.desk.heartbeat(1).report.next_step_us == 0


def test_heartbeats_tell_what_a_step_will_take_and_nothing_of_a_step_that_never_comes() -> None:
    node, beats = attached(), []
    engine = Watched()
    node.desk.batcher = Batcher(24, 4, lambda work: 1000)
    engine.during = lambda: beats.append(node.desk.heartbeat(1).report.next_step_us)
    loop = StepLoop(node.desk, engine)
    node.desk.post(Commands(1, [opened(1, Compute([1, 2, 3]))]))
    loop.turn()
    assert beats == [1000]
    # The seat leaves between two steps: none follows the one that was announced last.
    node.desk.post(Commands(1, [Close(1)]))
    loop.turn()
    assert [report.next_step_us for report in node.reports][-1] == 0
    assert node.desk.heartbeat(1).report.next_step_us == 0


def test_a_heartbeat_does_not_wait_for_a_lock_that_is_not_given_back() -> None:
    node = attached()
    node.desk.post(Commands(1, [opened(2, Import())]))
    node.loop.turn()
    before = node.desk.heartbeat(1).report
    is_held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with node.desk.changed:
            is_held.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert is_held.wait(30)
    assert node.desk.heartbeat(1).report == before
    assert holder.is_alive()
    done.set()
    holder.join()


def test_a_session_whose_lease_is_over_is_closed_before_anything_else_is_done() -> None:
    """As after a long freeze: what waited in the inbox is of the past."""
    node = attached()
    node.desk.post(Commands(1, [opened(1, Compute([1, 2, 3])), opened(2, Import())]))
    node.loop.turn()
    assert node.session is not None
    node.session.is_alive = False
    num_reports = len(node.reports)
    node.desk.post(Commands(1, [opened(3, Compute([1, 2, 3]))]))
    node.loop.turn()
    assert not node.desk.seats.by_slot
    assert node.desk.session is None
    assert len(node.reports) == num_reports
    assert node.desk.seats.pages.num_free == 8
