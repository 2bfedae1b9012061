"""Pairs over nccl that do not come up, or not as they should: nothing of them is left, in time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dopd.errors import LinkError, LinkRefusedError
from dopd.transfer import frames
from dopd.transfer.nccl import UNIQUE_ID_BYTES
from dopd.types import Endpoint, LinkWelcome, Peer
from tests.support.gpu.pairs import gpu_of, is_at_rest, what_is_left
from tests.support.links import (
    HELLO,
    Pair,
    is_closed,
    shake,
    stranger,
    wait_for,
)

pytestmark = pytest.mark.usefixtures("no_thread_is_left")
PAGES = list(range(10))
TARGETS = [100 + page for page in PAGES]


def test_a_peer_that_never_joins_is_given_up_in_time(impatient: None) -> None:
    with Pair("nccl") as pair, stranger(pair) as sock:
        welcome = shake(pair, sock, HELLO)
        assert isinstance(welcome, LinkWelcome)
        assert len(welcome.nccl_id) == UNIQUE_ID_BYTES
        assert is_closed(sock)
        assert pair.destination.log == []
        wait_for(lambda: is_at_rest(pair), lambda: what_is_left(pair))


def test_a_peer_that_leaves_instead_of_joining_costs_no_time() -> None:
    with Pair("nccl") as pair:
        for _ in range(20):
            with stranger(pair) as sock:
                shake(pair, sock, HELLO)
        wait_for(lambda: is_at_rest(pair), lambda: what_is_left(pair))
        assert pair.destination.log == []


def test_an_id_whose_link_is_not_made_is_retired() -> None:
    """The peer hangs up just now, or the worker ends."""
    with Pair("nccl") as pair:

        def fail(*arguments: object) -> None:
            raise LinkError("worker ends")

        pair.streams[1]._link = fail
        with pytest.raises(LinkError):
            pair.streams[0].connect(pair.peer, pair.peer.endpoints[0].address)
        wait_for(lambda: is_at_rest(pair), lambda: what_is_left(pair))
        assert gpu_of(pair.destination).nccl.calls("ncclGetUniqueId") == 1


def test_a_stranger_gets_no_id() -> None:
    with Pair("nccl") as pair, stranger(pair) as sock:
        frames.send_frame(sock, HELLO.__class__(1, "x", 1, HELLO.layout_hash, "wrong"), [])
        welcome = frames.receive_handshake(sock, 10)
        assert isinstance(welcome, LinkWelcome)
        assert welcome.nccl_id == b""
        assert gpu_of(pair.destination).nccl.calls("ncclGetUniqueId") == 0


def test_a_worker_that_ends_while_a_pair_joins_waits_for_no_one() -> None:
    with Pair("nccl") as pair:
        for end in (pair.source, pair.destination):
            gpu_of(end).nccl.hang("join")
        pair.transports[0].dial(pair.peer)
        nccl = gpu_of(pair.destination).nccl
        wait_for(lambda: nccl.live()["comms"] == 1, nccl.live)
        pair.source.wanted = False
        for transport in pair.transports:
            transport.close()
        wait_for(lambda: is_at_rest(pair), lambda: what_is_left(pair))
        assert pair.source.log == pair.destination.log == []


@contextmanager
def false_listener(welcome: LinkWelcome) -> Iterator[Peer]:
    """Takes one connection, says welcome to whoever is there, and holds on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def serve() -> None:
            sock, _ = server.accept()
            with sock:
                frames.receive_handshake(sock, 10)
                frames.send_frame(sock, welcome, [])
                sock.settimeout(10)
                is_closed(sock)

        thread = threading.Thread(target=serve)
        thread.start()
        host, port = server.getsockname()
        try:
            yield Peer(welcome.worker, welcome.incarnation, (Endpoint("nccl", f"{host}:{port}"),))
        finally:
            thread.join()


def dead_id() -> bytes:
    """Of a process that is gone: nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return b"gonegone\x02\0" + port.to_bytes(2, "big") + b"\x7f\0\0\x01" + bytes(112)


@pytest.mark.parametrize(
    ("unique_id", "error"),
    [
        (b"", "id of 0 bytes"),
        (b"x" * 127, "id of 127 bytes"),
        (b"x" * 129, "id of 129 bytes"),
        (b"\xff" * 128, "communicator: internal error"),
        (bytes(128), "communicator: internal error"),
        (dead_id(), "the other rank has not joined within 0.5 s"),
    ],
)
def test_an_id_that_is_no_good_is_refused_in_time(
    unique_id: bytes, error: str, impatient: None
) -> None:
    with Pair("nccl") as pair:
        transport = pair.streams[0]
        with false_listener(LinkWelcome("liar", 3, 1, nccl_id=unique_id)) as peer:
            with pytest.raises(LinkRefusedError, match=error):
                transport.connect(peer, peer.endpoints[0].address)
        assert not transport._links


def test_an_id_that_was_used_before_joins_nobody(impatient: None) -> None:
    """A late peer's, or one that is shown again: its root is gone, and so is its pair."""
    with Pair("nccl") as pair:
        link = pair.connect()
        used = pair.source.links[0]._unique_id
        with false_listener(LinkWelcome("liar", 3, 1, nccl_id=used)) as peer:
            with pytest.raises(LinkError, match="the other rank has not joined"):
                pair.streams[0].connect(peer, peer.endpoints[0].address)
        pair.destination.exposed[1] = TARGETS
        link.write(1, 0, PAGES)
        pair.settle(lambda: "written" in pair.source.names(), pair.source)


def test_a_peer_that_dials_again_ends_its_former_pair_before_it_joins() -> None:
    """What still spins on the device could hold up the new communicator."""
    with Pair("nccl") as pair:
        pair.connect()
        pair.settle(lambda: pair.destination.links, pair.destination)
        gpu_of(pair.destination).nccl.hang("join")
        pair.transports[0].dial(pair.peer)
        pair.settle(lambda: "down" in pair.destination.names(), pair.destination)
        assert len(pair.destination.links) == 1
        gpu_of(pair.destination).nccl.hang("join", is_hung=False)
        pair.settle(lambda: len(pair.destination.links) == 2, pair.destination)
