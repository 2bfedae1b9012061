"""Two workers, real data links: hand-off, cancel in mid-transfer, a destination that dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dopd.sched.events import State
from tests.support.gpu.cuda import shared_folder
from tests.support.gpu.machine import StubGpu
from tests.support.gpu.worker import libraries_of, on_gpu
from tests.support.links import wait_for
from tests.support.scripted_router import ScriptedRouter, close, open_compute, open_import, send
from tests.support.workers import GatedEngine, Running, expected_answer, running

PROMPT = [(7 * i) % 256 for i in range(100)]
# An answer that is not stopped goes on for seconds.
MAX_TOKENS = 20_000
P, D = 7, 4
"""Slots of source and destination."""
WAYS = pytest.mark.parametrize("way", ["shm", "tcp", "cuda_ipc", "nccl"])
DEVICE_WAYS = ("cuda_ipc", "nccl")


class HandOff:
    """A source that is told to ship, and its destination; both step when they are allowed to."""

    def __init__(self, router: ScriptedRouter, source: Running, destination: Running) -> None:
        self.router = router
        self.source, self.destination = source, destination
        self.p, self.d = router.worker("p"), router.worker("d")

    def begin(self, answer: list[int] | None = None, *, ignore_eos: bool = True) -> None:
        """Until the source has computed its prompt, and all full pages are written."""
        have = len(answer or [])
        self.d.send(open_import(D, len(PROMPT), MAX_TOKENS, have, ignore_eos=ignore_eos))
        self.router.wait_for(lambda: D in self.d.opened, "opened")
        opened = open_compute(P, PROMPT, MAX_TOKENS, answer=answer, ignore_eos=ignore_eos)
        self.p.send(opened, send(P, self.d.opened[D]))
        allow(self.source, 1)
        self.wait_until_written(self.source, P)

    def wait_until_written(self, source: Running, slot: int) -> None:
        """The source is GOING or past it, and what it could write so far is written."""
        seats = source.desk.seats.by_slot
        # On a busy machine all may be written, and the seat frozen, before anybody looks.
        source.wait_for(lambda: slot in seats and seats[slot].state >= State.GOING, "GOING")
        shipment = source.desk.seats.by_slot[slot].shipment
        assert shipment is not None
        source.wait_for(lambda: shipment.written == shipment.issued > 0, "written pages")

    def arrive(self) -> None:
        """One step more: at its end the source freezes and writes its last page."""
        allow(self.source, 1)
        self.router.wait_for(lambda: D in self.d.arrived, "arrived")

    def all_pages_are_back(self) -> None:
        for one in (self.source, self.destination):
            pages = one.desk.seats.pages
            one.wait_for(lambda p=pages: p.num_free == p.num_pages, "full pool")


def allow(one: Running, num_steps: int) -> None:
    assert isinstance(one.engine, GatedEngine)
    one.engine.allow(num_steps)


@contextmanager
def one_end(name: str, join: str, transports: str, folder: Path) -> Iterator[Running]:
    """A worker, its KV on a double's GPU if its transports are of these."""
    if transports not in DEVICE_WAYS:
        with running(name, join, engine=GatedEngine(), transports=transports) as one:
            yield one
        return
    gpu = StubGpu(folder)
    engine, libraries = on_gpu(GatedEngine(), gpu), libraries_of(gpu)
    with running(name, join, engine=engine, libraries=libraries, transports=transports) as one:
        yield one
    wait_for(lambda: not gpu.left(), gpu.left)
    gpu.check()


@contextmanager
def hand_off(way: str = "shm,tcp", theirs: str = "") -> Iterator[HandOff]:
    """The transports of the source, and those of the destination if they are others."""
    with ScriptedRouter() as router, ExitStack() as ends:
        folder = ends.enter_context(shared_folder())
        source, destination = (
            ends.enter_context(one_end(name, router.address, transports, folder))
            for name, transports in (("p", way), ("d", theirs or way))
        )
        yield HandOff(router, source, destination)
        # The steps under way may end.
        allow(source, 1)
        allow(destination, 1)
        for one in (source, destination):
            one.desk.stop()


@pytest.mark.parametrize("have", [0, 5])
@WAYS
def test_prefill_on_one_and_decode_on_another_answer_as_one(way: str, have: int) -> None:
    expected = expected_answer(PROMPT, 400)
    expected = expected[: expected.index(257) + 1]
    with hand_off(way) as h:
        h.begin(expected[:have], ignore_eos=False)
        h.arrive()
        h.p.send(close(P))
        h.destination.step_until(lambda: D in h.d.closed, "closed")
        h.router.wait_for(lambda: P in h.p.closed, "closed")
        pos, tail = h.d.arrived[D]
        assert expected[:have] + tail + h.d.tokens[D] == expected
        assert h.p.tokens[P] == expected[have:pos], "a frozen source steps no more"
        assert (h.p.closed[P], h.d.closed[D]) == ("asked", "stop")
        h.all_pages_are_back()


@WAYS
def test_a_moved_answer_may_move_back(way: str) -> None:
    """The imported seat ships on, though it never saw the prompt's tokens."""
    back = 9
    with hand_off(way) as h:
        h.begin()
        h.arrive()
        h.p.send(close(P))
        h.router.wait_for(lambda: P in h.p.closed, "closed")
        assert h.destination.desk.seats.by_slot[D].sequence.prompt == []
        h.p.send(open_import(back, len(PROMPT), MAX_TOKENS, ignore_eos=True))
        h.router.wait_for(lambda: back in h.p.opened, "opened")
        h.d.send(send(D, h.p.opened[back]))
        h.destination.step_until(lambda: back in h.p.arrived, "arrival")
        h.d.send(close(D))
        h.source.step_until(lambda: len(h.p.tokens.get(back, [])) >= 20, "token")
        whole = h.p.arrived[back][1] + h.p.tokens[back]
        assert whole == expected_answer(PROMPT, len(whole))
        h.p.send(close(back))
        h.source.step_until(lambda: back in h.p.closed, "closed")
        h.all_pages_are_back()


@WAYS
def test_cancel_in_mid_transfer_frees_both_sides(way: str) -> None:
    with hand_off(way) as h:
        h.begin()
        h.d.send(close(D))
        h.router.wait_for(lambda: D in h.d.closed, "closed")
        h.p.send(close(P))
        h.source.step_until(lambda: P in h.p.closed, "closed")
        assert (h.p.closed[P], h.d.closed[D]) == ("asked", "asked")
        h.all_pages_are_back()


@WAYS
def test_a_destination_closed_alone_is_freed_by_the_fence_timer_and_the_source_goes_on(
    way: str,
) -> None:
    """The source, which does not step, says no End: its link is aborted, and it stays."""
    with hand_off(way) as h:
        h.begin()
        h.d.send(close(D))
        h.router.wait_for(lambda: D in h.d.closed, "closed")
        pages = h.destination.desk.seats.pages
        h.destination.wait_for(lambda: pages.num_free == pages.num_pages, "full pool")
        h.source.wait_for_state(P, State.RUN)
        h.p.send(send(P, None))
        h.source.step_until(lambda: len(h.p.tokens[P]) >= 20, "token")
        assert h.p.tokens[P] == expected_answer(PROMPT, len(h.p.tokens[P]))


@WAYS
def test_destination_gone_source_stays(way: str) -> None:
    with hand_off(way) as h:
        h.begin()
        h.destination.worker.transport.close()
        h.source.wait_for_state(P, State.RUN)
        h.source.step_until(lambda: len(h.p.tokens[P]) >= 20, "token")
        assert h.p.tokens[P] == expected_answer(PROMPT, len(h.p.tokens[P]))


@WAYS
def test_source_gone_destination_is_lost(way: str) -> None:
    with hand_off(way) as h:
        h.begin()
        h.source.worker.transport.close()
        h.router.wait_for(lambda: D in h.d.closed, "closed")
        assert (h.d.closed[D], h.d.messages[D]) == ("lost", "data link is down")
        pages = h.destination.desk.seats.pages
        assert pages.num_free == pages.num_pages


@WAYS
def test_a_session_lost_in_mid_transfer_fences_and_the_fence_is_lifted(way: str) -> None:
    with hand_off(way) as h:
        h.begin()
        h.d.hang_up()
        h.destination.wait_for(lambda: not h.destination.desk.seats.by_slot, "empty table")
        h.p.send(close(P))
        h.source.step_until(lambda: P in h.p.closed, "closed")
        h.all_pages_are_back()


@pytest.mark.parametrize(
    ("ours", "theirs", "taken"),
    [("shm,tcp", "shm,tcp", "shm"), ("shm,tcp", "tcp", "tcp"), ("tcp", "shm,tcp", "tcp"),
     ("shm,tcp", "tcp,shm", "tcp")],
)  # fmt: skip
def test_two_workers_are_joined_by_the_best_way_that_both_have(
    ours: str, theirs: str, taken: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"), hand_off(ours, theirs) as h:
        h.begin()
        h.arrive()
        assert f"data link to d (generation 1) over {taken} is up" in caplog.text
