"""When the router shows something, to about two milliseconds: for bench/faults.py.

`Watch` looks every 20 ms, so that it disturbs nobody; a figure of some milliseconds needs more.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Callable
from typing import Any

PAUSE_S = 0.001
TIMEOUT_S = 30.0

Status = dict[str, Any]


def when(admin: str, is_so: Callable[[Status], bool], what: str) -> float:
    """The monotonic time at which the router's status was first so."""
    deadline = time.monotonic() + TIMEOUT_S
    with contextlib.closing(http.client.HTTPConnection(admin, timeout=TIMEOUT_S)) as connection:
        while True:
            connection.request("GET", "/status")
            if is_so(json.loads(connection.getresponse().read())):
                return time.monotonic()
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not within {TIMEOUT_S:g} s")
            time.sleep(PAUSE_S)


def state_of(status: Status, name: str) -> str:
    """`ready`, `suspect`, ...; `gone` if it is not attached."""
    found: dict[str, str] = {worker["id"]: worker["state"] for worker in status["workers"]}
    return found.get(name, "gone")


def when_state(admin: str, name: str, is_it: Callable[[str], bool]) -> float:
    """The time at which a worker was first in such a state."""
    return when(admin, lambda status: is_it(state_of(status, name)), f"the state of {name}")


def when_ready(admin: str, *names: str) -> float:
    """The time at which all of these workers were ready."""
    return when(
        admin, lambda status: all(state_of(status, n) == "ready" for n in names), "all are ready"
    )


def when_free(admin: str, *names: str) -> float:
    """The time at which these workers, or all, held no seat and no page, and nothing ran."""

    def is_free(status: Status) -> bool:
        workers = [one for one in status["workers"] if not names or one["id"] in names]
        pages = [one["pages"] for one in workers]
        held = any(w["seats"] for w in workers) or any(p["owned"] or p["fenced"] for p in pages)
        return not held and not status["sequences_running"] and not status["requests_waiting"]

    return when(admin, is_free, "every seat and page is free")
