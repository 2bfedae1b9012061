"""Scenes of `bench.faults` about pages: orphans of a broken transfer, seats of clients that left.

Also what all scenes share: a fleet for the time of a block, and how times are told.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.faults import scenes
from tests.support.faults.fleet import Fleet, fleet
from tests.support.faults.proxy import Pipe, Plan, Way
from tests.support.faults.timing import when_free
from tests.support.faults.traffic import Ask

SLOW_BYTES_PER_S = 30_000


def spread(times_s: list[float]) -> dict[str, Any]:
    """Median and worst in milliseconds."""
    return {
        "median_ms": round(statistics.median(times_s) * 1e3, 1),
        "worst_ms": round(max(times_s) * 1e3, 1),
        "rounds": len(times_s),
    }


@contextlib.contextmanager
def workers(
    prefill: int, decode: int, *router_words: str, kind: str = "rust", is_direct: bool = True
) -> Iterator[Fleet]:
    """A fleet for one scene."""
    with (
        tempfile.TemporaryDirectory(prefix="dopd-bench-") as name,
        fleet(
            Path(name),
            "--log-level",
            "error",
            *router_words,
            prefill=prefill,
            decode=decode,
            kind=kind,
            is_direct=is_direct,
        ) as one,
    ):
        yield one


def slow_transfer(fleet: Fleet) -> threading.Event:
    """The next data link into d0 is slow; set when its first pages are on the way."""
    begun = threading.Event()

    def look(pipe: Pipe, data: bytes) -> bytes:
        if pipe.num_bytes > 2_000:
            begun.set()
        return data

    link = fleet.nodes["d0"].data
    assert link is not None
    link.reset()
    link.plan = lambda _: Plan(out=Way(bytes_per_s=SLOW_BYTES_PER_S, filter=look))
    return begun


ORPHANS: dict[str, tuple[str, signal.Signals, str]] = {
    "source_killed": ("p0", signal.SIGKILL, "d0"),
    "destination_killed": ("d0", signal.SIGKILL, "p0"),
    "source_frozen": ("p0", signal.SIGSTOP, "d0"),
    "destination_frozen": ("d0", signal.SIGSTOP, "p0"),
}


def orphans(rounds: int) -> dict[str, Any]:
    """T6: until the worker that lives holds no page of the transfer any more."""
    times: dict[str, list[float]] = {name: [] for name in ORPHANS}
    for seed, name in itertools.product(range(rounds), ORPHANS):
        victim, how, other = ORPHANS[name]
        # A fleet of its own: what failed before opens breakers, and then no pages travel.
        with workers(1, 1, kind="python", is_direct=False) as fleet:
            begun = slow_transfer(fleet)
            # Long enough that a source without a destination yet is not done before.
            ask = Ask((seed % 256,) * scenes.LONG_PROMPT, 2_000)
            with leaving(fleet, ask) as leave:
                if not begun.wait(30):
                    raise RuntimeError("no pages on the way")
                at_s = fleet.nodes[victim].signal(how)
                leave()
            times[name].append(when_free(fleet.router.admin, other) - at_s)
            fleet.settled()
    return {name: spread(found) for name, found in times.items()}


@contextlib.contextmanager
def leaving(fleet: Fleet, ask: Ask) -> Iterator[Callable[[], None]]:
    """A client that is gone when the function is called."""
    body = scenes.request_bytes(fleet, ask)
    with scenes.dial(fleet.router.http) as client:
        client.sendall(body)
        yield client.close


def cancel(rounds: int) -> dict[str, Any]:
    """T7: a client leaves after its first token, and in the middle of its answer."""
    times: dict[str, list[float]] = {"first_token": [], "mid_decode": []}
    with workers(1, 1) as fleet:
        for seed in range(rounds):
            for name, events in (("first_token", 1), ("mid_decode", 40)):
                with scenes.dial(fleet.router.http) as client:
                    ask = Ask((seed % 256,) * (100 + seed), 400)
                    client.sendall(scenes.request_bytes(fleet, ask))
                    scenes.read_events(client, events)
                    at_s = time.monotonic()
                free_s = when_free(fleet.router.admin)
                times[name].append(free_s - at_s)
        step_us = max(w["step_us"] for w in fleet.router.status()["workers"])
    return {name: spread(found) for name, found in times.items()} | {"step_ms": step_us / 1e3}
