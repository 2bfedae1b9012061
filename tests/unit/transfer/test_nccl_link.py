"""The nccl link on machines where everything goes wrong: libnccl's double fails, hangs and lies."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dopd.errors import LinkError
from dopd.transfer import frames, nccl_link
from dopd.transfer.nccl import Communicator
from dopd.transfer.nccl_link import GROUPS_MAX
from dopd.types import LinkEnd, LinkPulled, LinkWelcome, LinkWrite
from tests.support.gpu.pairs import gpu_of, is_at_rest, what_is_left
from tests.support.links import (
    HELLO,
    PAGE_BYTES,
    Pair,
    is_closed,
    shake,
    stranger,
    wait_for,
)

pytestmark = pytest.mark.usefixtures("no_thread_is_left")
PAGES = list(range(10))
TARGETS = [100 + page for page in PAGES]
# ncclResult_t: all that is no success and not under way, and one that no library knows.
CODES = (1, 2, 3, 4, 5, 6, 8, 99)
CALLS = {
    "source": (
        "ncclCommInitRankConfig join ncclCommGetAsyncError async ncclGroupStart ncclSend "
        "ncclGroupEnd launch network ncclCommAbort"
    ),
    "destination": (
        "ncclGetUniqueId ncclCommInitRankConfig join ncclCommGetAsyncError async ncclGroupStart "
        "ncclRecv ncclGroupEnd launch network ncclCommAbort"
    ),
}


def ship(pair: Pair, nonce: int) -> None:
    """Dial, write and end, however far that gets; then nothing is left."""
    before = len(pair.source.links)
    pair.transports[0].dial(pair.peer)
    wait_for(
        lambda: len(pair.source.links) > before or not pair.transports[0]._dialling,
        lambda: pair.source.log,
    )
    pair.destination.exposed[nonce] = TARGETS
    for link in pair.source.links[before:]:
        link.write(nonce, 0, PAGES)
        link.end(LinkEnd(nonce, ok=True))
        wait_for(
            lambda link=link: (
                ("end", nonce, True) in pair.destination.log or ("down", link.id) in pair.source.log
            ),
            lambda: what_is_left(pair),
        )
        link.abort("test")
    wait_for(lambda: is_at_rest(pair), lambda: what_is_left(pair))


def check_events(pair: Pair, nonce: int) -> None:
    """What was told as landed is there, and no more was told than that."""
    told = [event for event in pair.destination.log if event[0] == "landed" and event[1] == nonce]
    pages = zip(PAGES, TARGETS, strict=True)
    is_there = [pair.destination.pool.page(t) == pair.source.pool.page(p) for p, t in pages]
    assert all(is_there) or not told
    written = [event for event in pair.source.log if event[0] == "written" and event[1] == nonce]
    assert len(told) <= 1
    assert len(written) <= len(told)
    for end in (pair.source, pair.destination):
        links = [event[1] for event in end.log if event[0] == "down"]
        assert len(set(links)) == len(links)


@pytest.mark.parametrize(
    ("end", "name"), [(end, name) for end, names in CALLS.items() for name in names.split()]
)
def test_whatever_the_library_returns_ends_one_link_and_leaves_nothing(end: str, name: str) -> None:
    """Each of its errors, at each of its calls, at each end; and at the second and third call."""
    with Pair("nccl") as pair:
        gpu = gpu_of(getattr(pair, end))
        for nonce, (code, nth) in enumerate([*((c, 1) for c in CODES), (3, 2), (3, 3)], start=1):
            pair.destination.pool.fill(TARGETS, 0)
            before = gpu.nccl.calls(name)
            gpu.nccl.fail(name, nth, code)
            ship(pair, nonce)
            check_events(pair, nonce)
            if nth == 1:
                assert gpu.nccl.calls(name) > before, "the test shows nothing"
            gpu.nccl.fail(name, 0)
        ship(pair, 0)
        assert ("end", 0, True) in pair.destination.log


@pytest.mark.parametrize("end", ["source", "destination"])
@pytest.mark.parametrize("what", ["join", "launch"])
def test_what_never_comes_to_an_end_is_given_up_in_time(
    end: str, what: str, impatient: None
) -> None:
    with Pair("nccl") as pair:
        hung = gpu_of(getattr(pair, end)).nccl
        hung.hang(what)
        ship(pair, 1)
        assert not any(event[0] in ("landed", "written") for event in pair.source.log)
        hung.hang(what, is_hung=False)
        # Refused once by itself or by its peer: it is dialled again all the same.
        ship(pair, 2)
        assert ("end", 2, True) in pair.destination.log


@contextmanager
def rank(pair: Pair, sock: socket.socket, unique_id: bytes, own: int) -> Iterator[Communicator]:
    """A rank of our own, in the place of a worker's; it is given back at the end."""
    gpu = gpu_of(pair.source)
    gpu.cuda.device.use()
    communicator = gpu.nccl.nccl.join(unique_id, own)
    wait_for(communicator.is_ready, lambda: "not ready")
    try:
        yield communicator
    finally:
        communicator.abort()


def test_a_receive_without_its_send_is_given_up_in_time(impatient: None) -> None:
    """A hostile source: it announces a write and sends nothing, or something else."""
    with Pair("nccl") as pair:
        pair.destination.exposed[1] = TARGETS
        for num_sent in (0, PAGE_BYTES // 2):
            with stranger(pair) as sock:
                welcome = shake(pair, sock, HELLO)
                assert isinstance(welcome, LinkWelcome)
                stream = gpu_of(pair.source).cuda.device.stream()
                with rank(pair, sock, welcome.nccl_id, 1) as communicator:
                    frames.send_frame(sock, LinkWrite(1, 0, 2), [])
                    if num_sent:
                        address = pair.source.pool.address(0)
                        communicator.send([address], num_sent, stream.handle)
                    assert is_closed(sock)
                wait_for(stream.is_done, lambda: "spins")
                stream.close()
            wait_for(lambda: is_at_rest(pair), lambda: what_is_left(pair))
        assert "landed" not in pair.destination.names()
        # The double says that the halves did not match; a real device hangs, or has half a page.
        text = gpu_of(pair.destination).nccl.forgive()
        assert text == "sends and receives do not match"


def test_a_send_without_its_receive_is_given_up_in_time(impatient: None) -> None:
    """A destination that joins, and then never asks for what it is told of."""
    with Pair("nccl") as pair:
        end = pair.streams[1]
        make_link = end._make_link

        def deaf(*arguments: object) -> object:
            link = make_link(*arguments)
            link._land = lambda write, num_payload: None
            return link

        end._make_link = deaf
        link = pair.connect()
        link.write(1, 0, PAGES)
        pair.settle(lambda: "down" in pair.source.names(), pair.source)
        wait_for(lambda: is_at_rest(pair), lambda: what_is_left(pair))
        assert "written" not in pair.source.names()


def test_a_peer_that_talks_and_never_pulls_is_given_up_in_time(
    impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than any pause between two of its words.
    monkeypatch.setattr(nccl_link, "WATCH_S", 3.0)
    with Pair("nccl") as pair:
        end = pair.streams[1]
        make_link = end._make_link

        def deaf(*arguments: object) -> object:
            link = make_link(*arguments)
            link._land = lambda write, num_payload: link.go(7, [])
            return link

        end._make_link = deaf
        # Each word of the one is answered by one of the other.
        pair.source.hook = lambda *event: event[0] == "go" and pair.source.links[0].begin(7)
        pair.destination.exposed[7] = []
        link = pair.connect()
        link.write(1, 0, PAGES)
        pair.settle(lambda: "down" in pair.source.names(), pair.source)
        wait_for(lambda: is_at_rest(pair), lambda: what_is_left(pair))
        assert "written" not in pair.source.names()
        assert pair.source.names().count("go") > 10, "the test shows nothing"


@pytest.mark.parametrize(
    "message",
    [
        LinkWrite(1, 0, 3, [1, 2, 3]),
        LinkWrite(1, 0, 0),
        LinkWrite(1, 0, nccl_link.GROUP_PAGES_MAX + 1),
        LinkPulled(1, 1),
    ],
)
def test_a_message_that_breaks_the_rules_ends_the_link(message: LinkWrite | LinkPulled) -> None:
    with Pair("nccl") as pair, stranger(pair) as sock:
        pair.destination.exposed[1] = list(range(200))
        welcome = shake(pair, sock, HELLO)
        assert isinstance(welcome, LinkWelcome)
        with rank(pair, sock, welcome.nccl_id, 1):
            frames.send_frame(sock, message, [])
            assert is_closed(sock)
        wait_for(lambda: is_at_rest(pair), lambda: what_is_left(pair))
        assert gpu_of(pair.destination).nccl.calls("ncclRecv") == 0


def test_a_second_write_of_pages_that_move_is_seen_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """T2: the seats know what has landed, and not what is about to."""
    with Pair("nccl") as pair:
        link, end = pair.connect(), pair.destination
        targets = end.targets

        def once(link: Any, nonce: int, first: int, count: int) -> list[int]:
            if "landed" in end.names():
                raise LinkError(f"second write of pages {first}..{first + count}")
            return targets(link, nonce, first, count)

        monkeypatch.setattr(end, "targets", once)
        end.exposed[1] = TARGETS
        cuda = gpu_of(end).cuda
        cuda.hold(is_held=True)
        link.write(1, 0, PAGES[:2])
        link.write(1, 1, PAGES[:1])
        wait_for(lambda: gpu_of(pair.source).nccl.calls("ncclSend") == 3, lambda: pair.source.log)
        cuda.hold(is_held=False)
        pair.settle(lambda: "down" in end.names(), end)
        assert end.names().count("landed") == 1


def test_nothing_is_written_to_a_source() -> None:
    with Pair("nccl") as pair:
        pair.connect()
        pair.settle(lambda: pair.destination.links, pair.destination)
        pair.source.exposed[1] = [0]
        pair.destination.links[0].write(1, 0, [0])
        pair.settle(lambda: "down" in pair.source.names(), pair.source)
        assert gpu_of(pair.source).nccl.calls("ncclRecv") == 0


def test_a_source_has_a_bounded_number_of_groups_under_way() -> None:
    """Else it would fill its stream, and wait inside of NCCL, where no abort reaches it."""
    with Pair("nccl") as pair:
        link = pair.connect()
        pair.settle(lambda: pair.destination.links, pair.destination)
        pair.destination.exposed[1] = TARGETS
        is_inside, may_go_on = pair.destination.hold_targets()
        for _ in range(3 * GROUPS_MAX):
            link.write(1, 0, PAGES)
        assert is_inside.wait(10)
        nccl = gpu_of(pair.source).nccl
        wait_for(lambda: nccl.calls("ncclGroupEnd") == GROUPS_MAX, lambda: nccl.calls("launch"))
        assert len(link._sent) == GROUPS_MAX
        may_go_on.set()
        pair.settle(lambda: pair.source.names().count("written") == 3 * GROUPS_MAX, pair.source)
        assert nccl.calls("ncclSend") == 3 * GROUPS_MAX * len(PAGES)


def test_the_next_group_moves_while_one_is_waited_for() -> None:
    with Pair("nccl") as pair:
        link = pair.connect()
        pair.settle(lambda: pair.destination.links, pair.destination)
        pair.destination.exposed[1] = TARGETS
        gpu = gpu_of(pair.destination)
        gpu.cuda.hold(is_held=True)
        for first in (0, 3, 6):
            link.write(1, first, PAGES[first : first + 3])
        link.end(LinkEnd(1, ok=True))
        # Two and no more; a kernel and an event each.
        wait_for(lambda: gpu.left().get("queued") == 4, gpu.left)
        assert gpu.nccl.calls("launch") == 2
        assert pair.destination.names() == ["up"]
        gpu.cuda.hold(is_held=False)
        pair.settle(lambda: "end" in pair.destination.names(), pair.destination)
        assert pair.destination.names() == ["up", "landed", "landed", "landed", "end"]


def test_groups_that_are_launched_late_land_all_the_same() -> None:
    with Pair("nccl") as pair:
        for end in (pair.source, pair.destination):
            gpu_of(end).nccl.delay(0.02)
            gpu_of(end).cuda.delay(0.005)
        for nonce in range(1, 4):
            ship(pair, nonce)
            assert ("landed", nonce, 0, len(PAGES)) in pair.destination.log
            check_events(pair, nonce)


def test_a_kernel_that_does_not_end_keeps_the_pages_fenced() -> None:
    """T4: no word of the link's end while the device may still write."""
    with Pair("nccl") as pair:
        link = pair.connect()
        pair.settle(lambda: pair.destination.links, pair.destination)
        pair.destination.exposed[1] = TARGETS
        end = pair.destination.links[0]
        cuda, nccl = gpu_of(pair.destination).cuda, gpu_of(pair.destination).nccl
        cuda.hold(is_held=True)
        link.write(1, 0, PAGES)
        wait_for(lambda: nccl.calls("launch") == 1, what=lambda: nccl.live())
        end.abort("test")
        wait_for(lambda: nccl.live()["comms"] == 0, nccl.live)
        assert not end.synchronise(0.1)
        assert "down" not in pair.destination.names()
        cuda.hold(is_held=False)
        assert end.synchronise(10)


def test_what_never_comes_to_rest_is_never_told_as_down(
    impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    with Pair("nccl") as pair:
        link = pair.connect()
        pair.settle(lambda: pair.destination.links, pair.destination)
        gpu = gpu_of(pair.destination)
        pair.destination.exposed[1] = TARGETS
        gpu.cuda.hold(is_held=True)
        link.write(1, 0, PAGES)
        wait_for(lambda: gpu.left().get("queued", 0) > 0, gpu.left)
        pair.destination.links[0].abort("test")
        wait_for(lambda: "does not come to rest" in caplog.text, lambda: caplog.text)
        assert not pair.destination.links[0].synchronise(0)
        assert "down" not in pair.destination.names()
        # Only for what comes after this test.
        gpu.cuda.hold(is_held=False)
        wait_for(lambda: gpu.left().get("queued", 0) == 0, gpu.left)
        pair.destination.links[0]._stream.close()


def test_an_abort_that_takes_too_long_is_told_and_gives_its_pages_back_when_it_ends(
    impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    with Pair("nccl") as pair:
        pair.connect()
        pair.settle(lambda: pair.destination.links, pair.destination)
        gpu, end = gpu_of(pair.destination), pair.destination.links[0]
        gpu.nccl.hang("abort")
        end.abort("test")
        wait_for(lambda: "its abort takes more than" in caplog.text, lambda: caplog.text)
        assert not end.synchronise(0)
        assert "down" not in pair.destination.names()
        gpu.nccl.hang("abort", is_hung=False)
        assert end.synchronise(10)
        pair.settle(lambda: "down" in pair.destination.names(), pair.destination)


def test_an_abort_may_take_as_long_as_what_it_waits_for() -> None:
    """Kernels of other links, for memory that it frees, and on one machine the other rank's abort,
    which may be in its join: somebody is told of what takes longer."""
    limits = nccl_link
    others_s = (1 + limits.LANDING_MAX) * limits.WRITE_S
    assert limits.ABORT_S > max(others_s, limits.JOIN_S) + limits.WRITE_S


def test_aborts_from_everywhere_are_one_abort() -> None:
    with Pair("nccl") as pair:
        link = pair.connect()
        pair.settle(lambda: pair.destination.links, pair.destination)
        pair.destination.exposed[1] = TARGETS
        for _ in range(20):
            link.write(1, 0, PAGES)
        ends = [pair.source.links[0], pair.destination.links[0]]
        threads = [threading.Thread(target=end.abort, args=("test",)) for end in ends * 8]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for end, events in zip(ends, (pair.source, pair.destination), strict=True):
            assert end.synchronise(10)
            wait_for(lambda events=events: "down" in events.names(), events.names)
            assert gpu_of(events).nccl.calls("ncclCommAbort") == 1


def test_a_communicator_that_breaks_while_nobody_sends_ends_the_link(impatient: None) -> None:
    with Pair("nccl") as pair:
        pair.connect()
        pair.settle(lambda: pair.destination.links, pair.destination)
        gpu_of(pair.source).nccl.fail("async", 1, 6)
        for end in (pair.source, pair.destination):
            pair.settle(lambda end=end: "down" in end.names(), end)
