"""Connections: one until it is full."""

from __future__ import annotations

import pytest

from dopd.client import pool
from dopd.client.pool import Lane, Pool


def made() -> Pool[int]:
    numbers = iter(range(1000))
    return Pool(lambda: next(numbers))


def test_one_connection_carries_what_fits() -> None:
    lanes = made()
    taken = [lanes.take() for _ in range(pool.CALLS_PER_CONNECTION)]
    assert {lane.channel for lane in taken} == {0}
    assert lanes.take().channel == 1


def test_ended_calls_make_room_again() -> None:
    lanes = made()
    for _ in range(10 * pool.CALLS_PER_CONNECTION):
        lanes.give(lanes.take())
    assert lanes.close() == [0]


def test_calls_spread_over_no_more_connections_than_the_limit() -> None:
    lanes = made()
    limit = pool.CALLS_PER_CONNECTION * pool.CONNECTIONS_MAX
    taken: list[Lane[int]] = [lanes.take() for _ in range(limit + pool.CONNECTIONS_MAX)]
    loads = {lane.channel: lane.load for lane in taken}
    assert loads == dict.fromkeys(range(pool.CONNECTIONS_MAX), pool.CALLS_PER_CONNECTION + 1)


def test_a_closed_pool_opens_nothing() -> None:
    lanes = made()
    lane = lanes.take()
    assert lanes.close() == [0]
    assert lanes.close() == []
    lanes.give(lane)
    with pytest.raises(RuntimeError, match="client is closed"):
        lanes.take()
