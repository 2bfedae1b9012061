"""Which way a source takes to a destination, and what it does when that is barred."""

from __future__ import annotations

import socket

import pytest

from dopd.types import Endpoint, Peer
from tests.support.links import Pair

KINDS = pytest.mark.parametrize("kind", ["tcp", "shm"])


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
