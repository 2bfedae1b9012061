"""Which way a source takes to a destination, and what it does when that is barred."""

from __future__ import annotations

import errno
import logging
import os
import socket
from dataclasses import replace
from typing import Any

import pytest

from dopd.errors import LinkError, LinkRefusedError
from dopd.transfer import pairing
from dopd.transfer.pairing import Transports
from dopd.transfer.shm import ShmTransport
from dopd.types import Endpoint, Peer
from tests.support.links import Pair, wait_for

KINDS = pytest.mark.parametrize("kind", ["tcp", "shm"])


def taken(pair: Pair) -> list[str]:
    """The transports of the source's links, in the order in which they came up."""
    return [link.label.rpartition(" ")[2] for link in pair.source.links]


def dialled(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with each attempt of the source to connect."""
    attempts: list[str] = []
    for stream in pair.streams[: len(pair.streams) // 2]:

        def connect(peer: Peer, address: str, stream: Any = stream) -> Any:
            attempts.append(stream.name)
            return type(stream).connect(stream, peer, address)

        monkeypatch.setattr(stream, "connect", connect)
    return attempts


def dial_and_drop(pair: Pair, peer: Peer) -> None:
    before = len(pair.source.links)
    pair.transports[0].dial(peer)
    pair.settle(lambda: len(pair.source.links) > before, pair.source)
    link = pair.source.links[-1]
    link.abort("test")
    assert link.synchronise(10)


def test_the_best_way_is_taken() -> None:
    with Pair("shm+tcp") as pair:
        assert [e.transport for e in pair.peer.endpoints] == ["shm", "tcp"]
        link = pair.connect()
        pair.destination.exposed[1] = [9]
        link.write(1, 0, [3])
        pair.settle(lambda: "landed" in pair.destination.names(), pair.destination)
        assert taken(pair) == ["shm"]


def test_the_order_is_the_destinations() -> None:
    with Pair("shm+tcp") as pair:
        peer = pair.peer
        dial_and_drop(pair, replace(peer, endpoints=peer.endpoints[::-1]))
        assert taken(pair) == ["tcp"]


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"transport": "rdma"}])
def test_a_way_that_does_not_reach_from_here_is_not_tried(
    change: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pair("shm+tcp") as pair:
        attempts = dialled(pair, monkeypatch)
        shm, tcp = pair.peer.endpoints
        dial_and_drop(pair, Peer("destination", 2, (replace(shm, **change), tcp)))
        assert attempts == ["tcp"]


def test_a_way_that_is_refused_gives_way_to_the_next_for_a_while_and_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Pair("shm+tcp") as pair, caplog.at_level(logging.WARNING):
        attempts = dialled(pair, monkeypatch)
        shm, tcp = pair.peer.endpoints
        peer = Peer("destination", 2, (replace(shm, address="dopd-nobody"), tcp))
        dial_and_drop(pair, peer)
        dial_and_drop(pair, peer)
        assert attempts == ["shm", "tcp", "tcp"]
        (record,) = caplog.records
        assert "over shm: 'dopd-nobody': " in record.message
        assert record.message.endswith("; tcp from now on")
        # It may have been short of something that it has now.
        at = pairing.time.monotonic() + pairing.REFUSED_S
        monkeypatch.setattr(pair.transports[0], "_clock", lambda: at)
        dial_and_drop(pair, peer)
        assert attempts[3:] == ["shm", "tcp"]
        # Another life of the peer is another matter.
        peer = Peer("destination", 3, peer.endpoints)
        pair.source.wanted = True
        pair.transports[0].dial(peer)
        wait_for(lambda: "destination lives at" in caplog.text, lambda: caplog.text)
        assert attempts[5:] == ["shm", "tcp"]


def test_memory_that_is_not_sealed_leads_to_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    with Pair("shm+tcp") as pair:
        attempts = dialled(pair, monkeypatch)
        descriptor = os.memfd_create("unsealed")
        os.ftruncate(descriptor, 4096)
        monkeypatch.setattr(pair.streams[0], "_descriptor", descriptor)
        dial_and_drop(pair, pair.peer)
        os.close(descriptor)
        assert attempts == ["shm", "tcp"]


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EMFILE])
def test_trouble_that_passes_is_no_reason_to_leave_a_way(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pair("shm+tcp") as pair:
        failures = iter([OSError(number, "later")] * 2)
        shm = pair.streams[0]
        plain_open = type(shm)._open

        def failing_open(address: str) -> socket.socket:
            for failure in failures:
                raise failure
            return plain_open(shm, address)

        monkeypatch.setattr(shm, "_open", failing_open)
        pair.connect()
        assert taken(pair) == ["shm"]


def test_a_way_that_fails_again_and_again_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox that takes descriptors out of messages looks like a peer that hangs up."""
    with Pair("shm+tcp") as pair:
        attempts = dialled(pair, monkeypatch)
        monkeypatch.setattr(ShmTransport, "_refusal_of_user", lambda self, sock: self.endpoint.host)
        monkeypatch.setattr(pair.streams[0], "_refusal_of_user", lambda sock: "")
        dial_and_drop(pair, pair.peer)
        assert attempts == ["shm"] * pairing.TRIES_MAX + ["tcp"]
        dial_and_drop(pair, pair.peer)
        assert attempts[-1] == "tcp"


def test_no_way_at_all_ends_the_dial_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    with Pair("shm+tcp") as pair, caplog.at_level(logging.WARNING):
        pair.transports[0].dial(Peer("destination", 2, (Endpoint("rdma", "mlx5_0"),)))
        wait_for(
            lambda: "(rdma mlx5_0) can be dialled from here" in caplog.text, lambda: caplog.text
        )
        assert pair.source.log == []


def test_the_last_way_is_tried_again_when_somebody_asks_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Pair("shm+tcp") as pair:
        attempts = dialled(pair, monkeypatch)
        tcp = pair.streams[1]
        refuse = iter([LinkRefusedError("not now")])
        plain_open = type(tcp)._open

        def refusing_open(address: str) -> socket.socket:
            for refusal in refuse:
                raise refusal
            return plain_open(tcp, address)

        monkeypatch.setattr(tcp, "_open", refusing_open)
        shm, way = pair.peer.endpoints
        peer = Peer("destination", 2, (replace(shm, address="dopd-nobody"), way))
        pair.transports[0].dial(peer)
        wait_for(lambda: "not now" in caplog.text, lambda: caplog.text)
        dial_and_drop(pair, peer)
        assert attempts == ["shm", "tcp", "tcp"]


def test_what_was_refused_is_not_remembered_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "REFUSED_MAX", 3)
    with Pair("shm+tcp") as pair:
        transports = pair.transports[0]
        assert isinstance(transports, Transports)
        for incarnation in range(50):
            way = Endpoint("shm", "dopd-nobody")
            transports._note_refused(Peer("destination", incarnation, (way,)), way)
            assert len(transports._refused) <= 3


def test_a_worker_without_transports_is_none() -> None:
    with Pair("tcp") as pair, pytest.raises(LinkError, match="no transport is left"):
        Transports([], pair.source)


def test_dialling_goes_on_until_the_destination_listens() -> None:
    with Pair("tcp") as pair:
        with socket.create_server(("127.0.0.1", 0)) as placeholder:
            port = placeholder.getsockname()[1]
        pair.transports[0].dial(Peer("destination", 2, (Endpoint("tcp", f"127.0.0.1:{port}"),)))
        pair.transports[0].dial(pair.peer)
        pair.settle(lambda: pair.source.links, pair.source)
        assert pair.source.names() == ["up"]


@KINDS
@pytest.mark.parametrize(
    "peer", [("destination", 3), ("somebody", 2)], ids=["other incarnation", "other worker"]
)
def test_a_worker_in_another_life_is_not_written_to(kind: str, peer: tuple[str, int]) -> None:
    """Asking again would be of no use: the dial ends while the link is still wanted."""
    with Pair(kind) as pair:
        pair.transports[0].dial(Peer(*peer, pair.peer.endpoints))
        pair.settle(lambda: "down" in pair.destination.names(), pair.destination)
        assert pair.source.log == []
