"""Looks at a fleet all the while: are its books balanced, and when did a worker change state.

`GET /status` on a connection of its own, every few milliseconds. What is wrong is kept and told by
`check`, so that a failure of a moment is not missed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INTERVAL_S = 0.02
TIMEOUT_S = 5.0
GONE = "gone"
# Where figures of fault tests go, one JSON object a line; see bench/faults.py.
RECORD = "DOPD_FAULT_RECORD"


def record(row: str, **figures: object) -> None:
    """Keep a measured figure of a row of the matrix, if somebody asks for them."""
    file = os.environ.get(RECORD)
    if file:
        line = json.dumps({"row": row} | figures) + "\n"
        with Path(file).open("a", encoding="utf-8") as out:
            out.write(line)


@dataclass(frozen=True, slots=True)
class Change:
    """At `at_s` (monotonic) a worker was seen in a new state; GONE: not attached."""

    at_s: float
    worker: str
    state: str


class Watch:
    """`address`: HTTP or admin of the router; asked anew each time, since it may restart."""

    def __init__(self, address: Callable[[], str]) -> None:
        self._address = address
        self._changed = threading.Condition()
        self._states: dict[str, str] = {}
        self._changes: list[Change] = []
        self._unbalanced: list[str] = []
        self._fenced_max = 0
        self._looks = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._is_over.set()
        self._thread.join(2 * TIMEOUT_S)

    @property
    def fenced_max(self) -> int:
        """Most fenced pages that were seen at once on one worker."""
        return self._fenced_max

    @property
    def looks(self) -> int:
        """How often the books were looked at."""
        return self._looks

    def changes(self, worker: str, since_s: float = 0.0) -> list[Change]:
        """Changes of one worker's state."""
        with self._changed:
            return [c for c in self._changes if c.worker == worker and c.at_s >= since_s]

    def wait(
        self, worker: str, is_it: Callable[[str], bool], since_s: float, timeout_s: float = 30.0
    ) -> float:
        """When the worker was first seen in such a state after `since_s`; it may be in it now."""

        def found() -> float | None:
            for change in self._changes:
                if change.worker == worker and change.at_s >= since_s and is_it(change.state):
                    return change.at_s
            return since_s if is_it(self._states.get(worker, GONE)) else None

        with self._changed:
            value = self._changed.wait_for(found, timeout_s)
            assert value is not None, f"{worker}: {self._changes[-10:]}"
            return value

    def check(self) -> None:
        """The books were balanced whenever somebody looked."""
        assert not self._unbalanced, "\n".join(self._unbalanced[:10])

    def _run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._is_over.wait(INTERVAL_S):
            try:
                if connection is None:
                    connection = http.client.HTTPConnection(self._address(), timeout=TIMEOUT_S)
                connection.request("GET", "/status")
                fleet = json.loads(connection.getresponse().read())
            except (OSError, http.client.HTTPException, ValueError):
                # The router is away, or ends in the middle of its answer.
                if connection is not None:
                    connection.close()
                connection = None
                continue
            self._look(fleet)
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()

    def _look(self, fleet: dict[str, Any]) -> None:
        now = time.monotonic()
        states = {worker["id"]: worker["state"] for worker in fleet["workers"]}
        with self._changed:
            self._looks += 1
            for worker in states.keys() | self._states.keys():
                state = states.get(worker, GONE)
                if state != self._states.get(worker, GONE):
                    self._changes.append(Change(now, worker, state))
            self._states = states
            for worker in fleet["workers"]:
                pages = worker["pages"]
                self._fenced_max = max(self._fenced_max, pages["fenced"])
                parts = sum(pages[name] for name in ("free", "owned", "cached", "fenced"))
                if parts != pages["total"]:
                    self._unbalanced.append(f"{worker['id']}: {pages}")
            self._changed.notify_all()
