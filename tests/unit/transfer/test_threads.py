"""A process that is out of threads for a moment (a limit of its group): no listener, peer or link
is worse off for it afterwards."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from tests.support.links import Pair, Recorder

KINDS = pytest.mark.parametrize("kind", ["tcp", "shm", "cuda_ipc", "nccl", "staged"])
# Over nccl an end that goes at once may be gone before the other one has joined, and is never up.
FRAMES_ONLY = pytest.mark.parametrize("kind", ["tcp", "shm", "cuda_ipc", "staged"])


def fail_once(monkeypatch: pytest.MonkeyPatch, end: str) -> list[str]:
    """The next thread of a name that ends so is not started; grows when that has happened."""
    failed: list[str] = []
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name.endswith(end) and not failed:
            failed.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    return failed


def is_down_again(end: Recorder) -> bool:
    """Its second link is down, too."""
    return end.names().count("down") == 2


@KINDS
def test_the_listener_goes_on(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Pair(kind) as pair:
        failed = fail_once(monkeypatch, "-welcome")
        # The source sees its connection end, and dials again.
        pair.connect()
        assert failed
        pair.settle(lambda: pair.destination.links, pair.destination)


@KINDS
def test_a_peer_can_be_dialled_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Pair(kind) as pair:
        failed = fail_once(monkeypatch, "-dial")
        # Under the desk's lock, from the step loop: nothing is raised.
        pair.transports[0].dial(pair.peer)
        assert failed
        assert not pair.source.links
        pair.connect()


@FRAMES_ONLY
@pytest.mark.parametrize("part", ["-w", "-r"])
def test_a_link_without_its_threads_is_down(
    kind: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pair(kind) as pair:
        pair.connect()
        pair.settle(lambda: pair.destination.links, pair.destination)
        pair.source.links[0].abort("test")
        pair.settle(lambda: "down" in pair.source.names(), pair.source)
        pair.settle(lambda: "down" in pair.destination.names(), pair.destination)
        # Of whichever worker is the first to need one.
        failed = fail_once(monkeypatch, part)
        pair.connect()
        for end in (pair.source, pair.destination):
            pair.settle(partial(is_down_again, end), end)
            assert end.links[1].synchronise(10)
        assert failed
        pair.connect()
        pair.settle(lambda: len(pair.destination.links) == 3, pair.destination)
