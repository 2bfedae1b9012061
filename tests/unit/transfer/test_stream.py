"""What transports over sockets share: frames from strangers, handshakes, dialling."""

from __future__ import annotations

import errno
import socket
import threading
import time
from typing import Any

import pytest

from dopd import wire
from dopd.errors import LinkError
from dopd.kv.bytes_pool import BytesPool
from dopd.transfer import frames, stream
from dopd.transfer.base import PROTOCOL
from dopd.transfer.shm import ShmLink
from dopd.transfer.stream_link import LinkParts, StreamLink
from dopd.transfer.tcp import TcpLink
from dopd.types import LinkBegin, LinkEnd, LinkHello, LinkMessage, LinkWelcome, LinkWrite
from tests.support.links import (
    HELLO,
    LAYOUT,
    TOKEN,
    Pair,
    Recorder,
    is_closed,
    shake,
    stranger,
    wait_for,
)

KINDS = pytest.mark.parametrize("kind", ["tcp", "shm", "cuda_ipc", "staged"])
# Of pools in the host's memory: nothing of a double would be given back.
HOST_KINDS = pytest.mark.parametrize("kind", ["tcp", "shm"])


@KINDS
@pytest.mark.parametrize(
    ("hello", "error"),
    [
        (LinkHello(PROTOCOL, "x", 1, LAYOUT, "wrong"), "join token of 'x' is wrong"),
        (LinkHello(PROTOCOL, "x", 1, LAYOUT, ""), "join token of 'x' is wrong"),
        (LinkHello(PROTOCOL, "x", 1, LAYOUT, "gräßlich"), "join token of 'x' is wrong"),
        (LinkHello(PROTOCOL + 1, "x", 1, LAYOUT, TOKEN), "link protocol 2, here 1"),
        (LinkHello(PROTOCOL, "x", 1, 5, TOKEN), "KV layout 0x5 of x, here 0x1234"),
        (LinkBegin(1), "LinkBegin instead of hello"),
    ],
)
def test_a_wrong_handshake_is_refused_with_the_reason(
    kind: str, hello: LinkMessage, error: str
) -> None:
    with Pair(kind) as pair, stranger(pair) as sock:
        welcome = shake(pair, sock, hello)
        assert isinstance(welcome, LinkWelcome)
        assert welcome.error == error
        assert is_closed(sock)
        assert pair.destination.log == []


@KINDS
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        frames.HEADER.pack(frames.HELLO_BYTES_MAX + 1, 0),
        frames.HEADER.pack(3, 7) + b"x" * 10,
        frames.HEADER.pack(0, 0),
        frames.HEADER.pack(4, 0) + b"\xff\xff\xff\xff",
    ],
)
def test_garbage_before_the_handshake_is_dropped(kind: str, data: bytes) -> None:
    with Pair(kind) as pair, stranger(pair) as sock:
        sock.sendall(data)
        assert is_closed(sock)
        pair.connect()


@KINDS
@pytest.mark.parametrize(
    "data",
    [
        frames.HEADER.pack(frames.MESSAGE_BYTES_MAX + 1, 0),
        frames.HEADER.pack(8, frames.PAYLOAD_BYTES_MAX + 1),
        frames.HEADER.pack(2, 0) + b"\xff\xff",
        frames.HEADER.pack(0, 0),
        frames.HEADER.pack(len(wire.encode_link(HELLO)), 0) + wire.encode_link(HELLO),
        # A write of one page that brings half of it; one that brings a page nobody exposed.
        frames.HEADER.pack(len(wire.encode_link(LinkWrite(1, 0, 1))), 2048)
        + wire.encode_link(LinkWrite(1, 0, 1)),
        frames.HEADER.pack(len(wire.encode_link(LinkWrite(2, 0, 1))), 4096)
        + wire.encode_link(LinkWrite(2, 0, 1)),
        # A Begin with a payload.
        frames.HEADER.pack(len(wire.encode_link(LinkBegin(1))), 1) + wire.encode_link(LinkBegin(1)),
    ],
)
def test_a_malformed_frame_closes_its_link_only(kind: str, data: bytes) -> None:
    with Pair(kind) as pair:
        pair.destination.exposed[1] = [0, 1, 2]
        other = pair.connect()
        with stranger(pair) as sock:
            assert isinstance(welcome := shake(pair, sock, HELLO), LinkWelcome)
            assert welcome.error == ""
            sock.sendall(data)
            assert is_closed(sock)
        pair.settle(lambda: "down" in pair.destination.names(), pair.destination)
        assert not any(pair.destination.pool.memory)
        other.write(1, 0, [7])
        pair.settle(lambda: "landed" in pair.destination.names(), pair.destination)
        assert pair.destination.names().count("down") == 1


@KINDS
def test_a_link_is_not_synchronised_while_its_reader_may_still_land_a_page(kind: str) -> None:
    """T4, held open: the reader is between the frame's header and the page when abort comes."""
    with Pair(kind) as pair:
        link = pair.connect()
        pair.destination.exposed[1] = [0]
        is_inside, may_go_on = pair.destination.hold_targets()
        link.write(1, 0, [3])
        assert is_inside.wait(10)
        end = pair.destination.links[0]
        end.abort("test")
        assert not end.synchronise(0)
        assert "down" not in pair.destination.names()
        may_go_on.set()
        assert end.synchronise(10)


@KINDS
def test_a_peer_that_dials_again_ends_its_former_link(kind: str) -> None:
    with Pair(kind) as pair, stranger(pair) as old, stranger(pair) as new:
        first = shake(pair, old, HELLO)
        second = shake(pair, new, HELLO)
        assert isinstance(first, LinkWelcome)
        assert isinstance(second, LinkWelcome)
        assert second.generation > first.generation
        assert is_closed(old)
        frames.send_frame(new, LinkEnd(5, ok=False), [])
        pair.settle(lambda: ("end", 5, False) in pair.destination.log, pair.destination)


@KINDS
def test_of_two_links_the_newer_one_stays_whichever_handshake_ends_first(kind: str) -> None:
    """The first handshake is held between its welcome and its end."""
    with Pair(kind) as pair, stranger(pair) as old, stranger(pair) as new:
        transport = pair.streams[1]
        make_link, may_go_on = transport._link, threading.Event()
        calls = iter((True, False))

        def slow_link(*arguments: Any) -> StreamLink:
            if next(calls):
                assert may_go_on.wait(10)
            return make_link(*arguments)

        transport._link = slow_link
        shake(pair, old, HELLO)
        shake(pair, new, HELLO)
        pair.settle(lambda: pair.destination.links, pair.destination)
        may_go_on.set()
        assert is_closed(old)
        frames.send_frame(new, LinkEnd(5, ok=False), [])
        pair.settle(lambda: ("end", 5, False) in pair.destination.log, pair.destination)


@KINDS
@pytest.mark.parametrize("end", ["source", "destination"])
def test_a_link_that_cannot_be_joined_is_never_up_and_leaves_nothing(kind: str, end: str) -> None:
    """What is left of a handshake fails once, at either end; the next one joins."""
    with Pair(kind) as pair:
        transport = pair.streams[0 if end == "source" else 1]
        make_link, made = transport._make_link, []

        def fail() -> None:
            raise LinkError("no communicator")

        def first_fails(*arguments: Any) -> StreamLink:
            made.append(make_link(*arguments))
            if len(made) == 1:
                made[0].join = fail
            return made[-1]

        transport._make_link = first_fails
        pair.connect()
        if end == "destination":
            pair.settle(lambda: "down" in pair.source.names(), pair.source)
            pair.connect()
        pair.settle(lambda: pair.destination.links, pair.destination)
        recorder = pair.source if end == "source" else pair.destination
        assert made[0].synchronise(10)
        wait_for(lambda: made[0] not in transport._links, lambda: made[0].label)
        assert made[0].id not in [event[1] for event in recorder.log if event[0] in ("up", "down")]


@HOST_KINDS
def test_a_link_that_does_not_come_to_rest_is_never_down(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its pages stay fenced: better lost than written to behind their next owner's back."""
    with Pair(kind) as pair:
        pair.connect()
        pair.settle(lambda: pair.destination.links, pair.destination)
        end: Any = pair.destination.links[0]
        end._quiesce = lambda: False
        end.abort("test")
        wait_for(lambda: "does not come to rest" in caplog.text, lambda: caplog.text)
        end._reader.join(10)
        assert not end.synchronise(0)
        assert "down" not in pair.destination.names()
        pair.settle(lambda: "down" in pair.source.names(), pair.source)


@KINDS
def test_a_failed_accept_does_not_end_the_listener(kind: str) -> None:
    """Out of descriptors for a moment: the next peer is taken in all the same."""
    with Pair(kind) as pair:
        transport = pair.streams[1]
        listener = transport._listener
        failures = iter((OSError(errno.EMFILE, "Too many open files"),))

        class Failing:
            def accept(self) -> object:
                for failure in failures:
                    raise failure
                return listener.accept()

            def __getattr__(self, name: str) -> object:
                return getattr(listener, name)

        transport._listener = Failing()
        for _ in range(2):
            # The first is taken by the accept that waits already.
            with stranger(pair) as sock:
                assert isinstance(shake(pair, sock, HELLO), LinkWelcome)
        assert next(failures, None) is None


@HOST_KINDS
def test_a_long_write_travels_in_several_frames_and_its_speed_is_measured(kind: str) -> None:
    with Pair(kind, num_pages=16, page_bytes=1 << 20) as pair:
        link = pair.connect()
        start = link.bytes_per_s
        pair.destination.exposed[1] = list(range(16))
        link.write(1, 0, list(range(16)))
        link.end(LinkEnd(1, ok=True))
        pair.settle(lambda: "end" in pair.destination.names(), pair.destination)
        # The last Pulled may still be on its way.
        pair.settle(lambda: link.bytes_per_s != start, pair.source)
        writes = [event[2:] for event in pair.destination.log if event[0] == "landed"]
        assert writes == [(0, 4), (4, 4), (8, 4), (12, 4)]
        assert pair.destination.pool.memory == pair.source.pool.memory
        assert link.bytes_per_s > 0


@KINDS
def test_a_handshake_has_one_time_limit_however_it_is_cut(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then held a handshake, of which there are 64, for as long as it liked."""
    monkeypatch.setattr(stream, "HANDSHAKE_S", 0.2)
    with Pair(kind) as pair, stranger(pair) as sock:
        sock.sendall(frames.HEADER.pack(4000, 0))
        with pytest.raises(ConnectionError):
            for _ in range(3900):
                sock.sendall(b"\0")
                time.sleep(0.01)
        assert pair.destination.log == []


@HOST_KINDS
def test_abort_frees_a_writer_that_waits_for_a_peer_that_does_not_read(kind: str) -> None:
    """A stopped process neither reads nor ends; its links must end without it (T4)."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    events = Recorder(BytesPool(8, 4096))
    make = {"tcp": TcpLink, "shm": ShmLink}[kind]
    link = make(LinkParts(ours, events.pool, events, lambda link: None, kind))
    link.start()
    with theirs:
        for nonce in range(10_000):
            link.write(nonce, 0, [nonce % 8])
        # Bytes wait to be read, so the writer has begun; it cannot get rid of all of them.
        assert theirs.recv(1, socket.MSG_PEEK)
        assert not link.synchronise(0.05)
        link.abort("test")
        assert link.synchronise(10)


def test_closing_has_one_time_limit_however_many_links_do_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device that hangs keeps all of its links."""
    monkeypatch.setattr(stream, "CLOSE_S", 0.2)
    waited_s: list[float] = []

    class Stuck:
        def abort(self, reason: str) -> None:
            """It never ends."""

        def synchronise(self, timeout_s: float) -> bool:
            waited_s.append(timeout_s)
            time.sleep(timeout_s)
            return False

    with Pair("tcp") as pair:
        closing: Any = pair.streams[0]
        closing._links |= {Stuck() for _ in range(8)}
        closing.close()
    assert len(waited_s) == 8
    assert min(waited_s) == 0 and sum(waited_s) <= 0.2
