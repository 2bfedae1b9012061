"""Faults as scenes that both the rows of the matrix and bench/faults.py play: do it, time it.

A scene plays on a running fleet, leaves it as it found it up to `Fleet.settled`, and returns what
was seen; its caller judges. Times are seconds by the monotonic clock.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import time
from dataclasses import dataclass
from itertools import islice

from tests.support.faults.fleet import Fleet, Node
from tests.support.faults.traffic import Ask, Results, asks
from tests.support.faults.watch import GONE
from tests.support.processes import wait_for

# A prompt that takes several steps of prefill, and an answer that runs for a second or two.
LONG_PROMPT, LONG_ANSWER = 6_000, 200


@dataclass
class Death:
    """What a death led to. replays: sequences that were computed again because of it.

    unrouted_s: until the router showed the worker as gone (looked at every 20 ms).
    """

    unrouted_s: float
    replays: int
    results: Results


def mixed_asks(seed: int, count: int, tokens_min: int = 40, tokens_max: int = 120) -> list[Ask]:
    """Requests of all kinds, none shorter than `tokens_min`."""
    rng = random.Random(seed)
    return [
        Ask(one.prompt, rng.randint(tokens_min, tokens_max), one.temperature, one.seed)
        for one in islice(asks(seed), count)
    ]


def when_busy(node: Node, *, seats: int = 1, steps: int = 0) -> None:
    """Until the worker has so many seats, and then has made so many steps more."""
    first: int | None = None

    def is_busy() -> bool:
        nonlocal first
        status = node.status()
        if status is None or (first is None and status["seats"] < seats):
            return False
        first = status["steps"] if first is None else first
        return bool(status["steps"] - first >= steps or not status["seats"])

    wait_for(is_busy, f"{node.name} has {seats} seats and {steps} steps more")


def decoders(fleet: Fleet) -> list[Node]:
    """The workers labelled decode."""
    return [node for node in fleet.nodes.values() if node.role == "decode"]


def death(fleet: Fleet, victim: str, seed: int, *, streams: int) -> Death:
    """`streams` answers at once; one of the workers is killed at a step that the seed chooses."""
    rng = random.Random(seed)
    before = fleet.router.status()["replays_total"]
    node = fleet.nodes[victim]
    with fleet.ask(*mixed_asks(seed, streams), clients=streams) as traffic:
        if node.role == "prefill":
            when_busy(node, seats=1, steps=rng.randrange(3))
        else:
            # Some steps at least: a seat whose pages are still on their way costs no replay.
            when_busy(node, seats=max(streams // 8, 1), steps=5 + rng.randrange(25))
        at_s = node.kill()
        gone_s = fleet.watch.wait(victim, lambda state: state == GONE, at_s)
        results = traffic.finish()
    replays = fleet.router.status()["replays_total"] - before
    fleet.settled()
    return Death(gone_s - at_s, replays, results)


@dataclass
class Freeze:
    """ejected_s, gone_s: from the stop; None: was not. back_s: from the wake-up."""

    ejected_s: float | None
    gone_s: float | None
    back_s: float
    replays: int
    results: Results


def freeze(fleet: Fleet, victim: str, seed: int, *, streams: int, hold_s: float) -> Freeze:
    """SIGSTOP in the middle of answers, SIGCONT after `hold_s`."""
    before = fleet.router.status()["replays_total"]
    node = fleet.nodes[victim]
    with fleet.ask(*mixed_asks(seed, streams), clients=streams) as traffic:
        when_busy(node, seats=max(streams // 8, 1), steps=5)
        at_s = node.signal(signal.SIGSTOP)
        time.sleep(hold_s)
        woken_s = node.signal(signal.SIGCONT)
        back_s = fleet.watch.wait(victim, lambda state: state == "ready", woken_s)
        results = traffic.finish()
    changes = fleet.watch.changes(victim, at_s)
    replays = fleet.router.status()["replays_total"] - before
    fleet.settled()
    out = next((c.at_s - at_s for c in changes if c.state != "ready"), None)
    gone = next((c.at_s - at_s for c in changes if c.state == GONE), None)
    return Freeze(out, gone, back_s - woken_s, replays, results)


def roll(fleet: Fleet) -> None:
    """SIGTERM and a new life for each worker, one after the other."""
    for node in fleet.nodes.values():
        node.signal(signal.SIGTERM)
        code = node.process.popen.wait(60)
        assert code == 0, f"{node.name} ended with {code}:\n{node.process.told()[-2000:]}"
        node.restart()

        def is_back(name: str = node.name) -> bool:
            states = {w["id"]: w["state"] for w in fleet.router.status()["workers"]}
            return states.get(name) == "ready"

        wait_for(is_back, f"{node.name} is back")


def dial(address: str) -> socket.socket:
    """A client's connection."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def request_bytes(fleet: Fleet, ask: Ask) -> bytes:
    """A streamed completion as bytes of HTTP."""
    body = {"model": fleet.router.model, "prompt": ask.prompt, "max_tokens": ask.max_tokens}
    body |= {"ignore_eos": True, "stream": True, "temperature": 0}
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


def read_events(client: socket.socket, count: int) -> None:
    """Until so many events of the answer have come."""
    got = b""
    while got.count(b"data: ") < count:
        piece = client.recv(65_536)
        assert piece, got[-200:]
        got += piece
