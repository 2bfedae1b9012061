"""Connections of one client: one, until its calls fill it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from dopd.client.methods import Method

C = TypeVar("C")

# What a server lets run on one connection; gRPC holds further calls back without a word.
CALLS_PER_CONNECTION = 100
# After that, calls do wait.
CONNECTIONS_MAX = 8


class Lane(Generic[C]):
    """One channel, with the calls that run on it."""

    def __init__(self, channel: C) -> None:
        self.channel = channel
        self.load = 0
        self._callables: dict[str, Any] = {}

    def callable(self, method: Method[Any, Any], kind: str) -> Any:
        """gRPC's object for `method`; kind: `unary_unary` or `unary_stream`."""
        found = self._callables.get(method.path)
        if found is None:
            make = getattr(self.channel, kind)
            found = make(
                method.path,
                request_serializer=method.encode,
                response_deserializer=method.decode,
            )
            self._callables[method.path] = found
        return found


class Pool(Generic[C]):
    """Lanes; the least loaded one takes the next call. Any thread may call it."""

    def __init__(self, open_channel: Callable[[], C]) -> None:
        self._open_channel = open_channel
        # Calls are given back from gRPC's threads and by the garbage collector, at any point.
        self._lock = threading.RLock()
        self._lanes: list[Lane[C]] = []
        self._is_closed = False

    def take(self) -> Lane[C]:
        """A lane for one call; `give` it back when the call has ended."""
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the client is closed: make a new one")
            lane = min(self._lanes, key=lambda lane: lane.load, default=None)
            is_full = lane is None or lane.load >= CALLS_PER_CONNECTION
            if lane is None or (is_full and len(self._lanes) < CONNECTIONS_MAX):
                lane = Lane(self._open_channel())
                self._lanes.append(lane)
            lane.load += 1
            return lane

    def give(self, lane: Lane[C]) -> None:
        """A call on `lane` has ended."""
        with self._lock:
            lane.load -= 1

    def close(self) -> list[C]:
        """Channels that the caller has to close now; the pool opens no other."""
        with self._lock:
            lanes, self._lanes, self._is_closed = self._lanes, [], True
        return [lane.channel for lane in lanes]
