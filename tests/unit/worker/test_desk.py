"""The desk without threads: what the router asks, what it is told."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from dopd._gen.dopd.worker.v1 import worker_pb2 as pb
from dopd.types import Close, Commands, Compute, Import, Limits, Open, Role, SetRole
from tests.support.fleet import Fleet, Node


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
