"""What only TCP has: frames from strangers, handshakes, dialling."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd import wire
from dopd.errors import LinkError
from dopd.kv.bytes_pool import BytesPool
from dopd.transfer import frames
from dopd.transfer.base import PROTOCOL, LinkIdentity
from dopd.transfer.tcp import TcpTransport
from dopd.transfer.tcp_link import TcpLink
from dopd.types import (
    Endpoint,
    LinkBegin,
    LinkEnd,
    LinkGo,
    LinkHello,
    LinkMessage,
    LinkWelcome,
    LinkWrite,
    Peer,
)
from tests.support.links import LAYOUT, TOKEN, Pair

HELLO = LinkHello(PROTOCOL, "stranger", 77, LAYOUT, TOKEN)
NO_PAYLOAD: list[memoryview] = []
MESSAGES = (
    LinkBegin(3),
    LinkGo(3, [1, 2]),
    LinkWrite(3, 0, 1),
    LinkEnd(3, True, 2, 1, [5], 9),
    HELLO,
    LinkWelcome("w", 1, 2, ""),
)


@contextmanager
def stranger(pair: Pair) -> Iterator[socket.socket]:
    """A bare socket to the destination."""
    host, port = pair.transports[1].address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        yield sock


def shake(sock: socket.socket, hello: LinkMessage) -> LinkMessage:
    frames.send_frame(sock, hello, NO_PAYLOAD)
    return frames.receive_handshake(sock)


def is_closed(sock: socket.socket) -> bool:
    """Whether the other side closed it; ours to wait for, at most the socket's time limit."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


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
def test_a_wrong_handshake_is_refused_with_the_reason(hello: LinkMessage, error: str) -> None:
    with Pair("tcp") as pair, stranger(pair) as sock:
        welcome = shake(sock, hello)
        assert isinstance(welcome, LinkWelcome)
        assert welcome.error == error
        assert is_closed(sock)
        assert pair.destination.log == []


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
def test_garbage_before_the_handshake_is_dropped(data: bytes) -> None:
    with Pair("tcp") as pair, stranger(pair) as sock:
        sock.sendall(data)
        assert is_closed(sock)
        pair.connect()


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
def test_a_malformed_frame_closes_its_link_only(data: bytes) -> None:
    with Pair("tcp") as pair:
        pair.destination.exposed[1] = [0, 1, 2]
        other = pair.connect()
        with stranger(pair) as sock:
            assert isinstance(welcome := shake(sock, HELLO), LinkWelcome)
            assert welcome.error == ""
            sock.sendall(data)
            assert is_closed(sock)
        pair.settle(lambda: "down" in pair.destination.names(), pair.destination)
        assert not any(pair.destination.pool.memory)
        other.write(1, 0, [7])
        pair.settle(lambda: "landed" in pair.destination.names(), pair.destination)
        assert pair.destination.names().count("down") == 1


def test_a_frame_cut_short_lands_on_its_own_pages_only() -> None:
    with Pair("tcp") as pair:
        pair.destination.exposed[1] = [4, 5]
        with stranger(pair) as sock:
            shake(sock, HELLO)
            head = wire.encode_link(LinkWrite(1, 0, 2))
            sock.sendall(frames.HEADER.pack(len(head), 8192) + head + b"x" * 5000)
        pair.settle(lambda: "down" in pair.destination.names(), pair.destination)
        assert "landed" not in pair.destination.names()
        pool = pair.destination.pool
        assert not any(any(pool.page(page)) for page in range(256) if page not in (4, 5))


def test_a_link_is_not_synchronised_while_its_reader_may_still_land_a_page() -> None:
    """T4, held open: the reader is between the frame's header and the page when abort comes."""
    with Pair("tcp") as pair:
        link = pair.connect()
        pair.destination.exposed[1] = [0]
        is_inside, may_go_on = threading.Event(), threading.Event()
        targets = pair.destination.targets

        def slow_targets(*arguments: Any) -> list[int]:
            is_inside.set()
            assert may_go_on.wait(10)
            return targets(*arguments)

        pair.destination.targets = slow_targets
        link.write(1, 0, [3])
        assert is_inside.wait(10)
        end = pair.destination.links[0]
        end.abort("test")
        assert not end.synchronise(0)
        assert "down" not in pair.destination.names()
        may_go_on.set()
        assert end.synchronise(10)


def test_a_peer_that_dials_again_ends_its_former_link() -> None:
    with Pair("tcp") as pair, stranger(pair) as old, stranger(pair) as new:
        first = shake(old, HELLO)
        second = shake(new, HELLO)
        assert isinstance(first, LinkWelcome)
        assert isinstance(second, LinkWelcome)
        assert second.generation > first.generation
        assert is_closed(old)
        frames.send_frame(new, LinkEnd(5, ok=False), NO_PAYLOAD)
        pair.settle(lambda: ("end", 5, False) in pair.destination.log, pair.destination)


def test_of_two_links_the_newer_one_stays_whichever_handshake_ends_first() -> None:
    """The first handshake is held between its welcome and its end."""
    with Pair("tcp") as pair, stranger(pair) as old, stranger(pair) as new:
        transport = pair.transports[1]
        assert isinstance(transport, TcpTransport)
        make_link, may_go_on = transport._link, threading.Event()
        calls = iter((True, False))

        def slow_link(*arguments: Any) -> TcpLink:
            if next(calls):
                assert may_go_on.wait(10)
            return make_link(*arguments)

        transport._link = slow_link
        shake(old, HELLO)
        shake(new, HELLO)
        pair.settle(lambda: pair.destination.links, pair.destination)
        may_go_on.set()
        assert is_closed(old)
        frames.send_frame(new, LinkEnd(5, ok=False), NO_PAYLOAD)
        pair.settle(lambda: ("end", 5, False) in pair.destination.log, pair.destination)


def test_a_failed_accept_does_not_end_the_listener() -> None:
    """Out of descriptors for a moment: the next peer is taken in all the same."""
    with Pair("tcp") as pair:
        transport = pair.transports[1]
        assert isinstance(transport, TcpTransport)
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
                assert isinstance(shake(sock, HELLO), LinkWelcome)
        assert next(failures, None) is None


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_it_listens_and_dials_over_ipv6() -> None:
    with Pair("tcp") as pair:
        identity = LinkIdentity("six", 6, LAYOUT, TOKEN)
        six = TcpTransport("::1", identity, BytesPool(1, 16), pair.destination)
        six.start()
        try:
            pair.transports[0].dial(Peer("six", 6, (Endpoint("tcp", six.address),)))
            pair.settle(lambda: pair.source.links, pair.source)
        finally:
            six.close()


def test_dialling_goes_on_until_the_destination_listens() -> None:
    with Pair("tcp") as pair:
        with socket.create_server(("127.0.0.1", 0)) as placeholder:
            port = placeholder.getsockname()[1]
        pair.transports[0].dial(Peer("destination", 2, (Endpoint("tcp", f"127.0.0.1:{port}"),)))
        pair.transports[0].dial(pair.peer)
        pair.settle(lambda: pair.source.links, pair.source)
        assert pair.source.names() == ["up"]


@pytest.mark.parametrize(
    "peer", [("destination", 3), ("somebody", 2)], ids=["other incarnation", "other worker"]
)
def test_a_worker_in_another_life_is_not_written_to(peer: tuple[str, int]) -> None:
    """Asking again would be of no use: the dial ends while the link is still wanted."""
    with Pair("tcp") as pair:
        pair.transports[0].dial(Peer(*peer, (Endpoint("tcp", pair.transports[1].address),)))
        pair.settle(lambda: "down" in pair.destination.names(), pair.destination)
        assert pair.source.log == []


def test_a_long_write_travels_in_several_frames_and_its_speed_is_measured() -> None:
    with Pair("tcp", num_pages=16, page_bytes=1 << 20) as pair:
        link = pair.connect()
        start = link.bytes_per_s
        pair.destination.exposed[1] = list(range(16))
        link.write(1, 0, list(range(16)))
        link.end(LinkEnd(1, ok=True))
        pair.settle(lambda: "end" in pair.destination.names(), pair.destination)
        writes = [event[2:] for event in pair.destination.log if event[0] == "landed"]
        assert writes == [(0, 4), (4, 4), (8, 4), (12, 4)]
        assert pair.destination.pool.memory == pair.source.pool.memory
        assert link.bytes_per_s != start
        assert link.bytes_per_s > 0


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_survive_the_wire(message: LinkMessage) -> None:
    assert wire.decode_link(wire.encode_link(message)) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_link_error(data: bytes) -> None:
    try:
        message = wire.decode_link(data)
    except LinkError:
        return
    assert isinstance(message, LinkMessage)
