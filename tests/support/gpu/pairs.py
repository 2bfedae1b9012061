"""What is left of a pair over nccl: for tests of its links."""

from __future__ import annotations

import threading

from tests.support.gpu.machine import StubGpu
from tests.support.links import Pair, Recorder


def gpu_of(events: Recorder) -> StubGpu:
    assert events.gpu is not None
    return events.gpu


def is_at_rest(pair: Pair) -> bool:
    """Every link that was up is down, once, and nothing is left of it or of a handshake."""
    ends = (pair.source, pair.destination)
    is_quiet = all(e.names().count("up") == e.names().count("down") for e in ends)
    return is_quiet and not pair.transports[0]._dialling and not any(gpu_of(e).left() for e in ends)


def what_is_left(pair: Pair) -> object:
    ends = (pair.source, pair.destination)
    return [(end.log[-5:], gpu_of(end).left()) for end in ends], threading.enumerate()
