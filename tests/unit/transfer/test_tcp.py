"""What only TCP has: pages in frames, hosts and ports."""

from __future__ import annotations

import socket

import pytest

from dopd import wire
from dopd.transfer import frames
from dopd.transfer.base import LinkIdentity
from dopd.transfer.tcp import TcpTransport
from dopd.types import LinkWrite, Peer
from tests.support.links import HELLO, LAYOUT, TOKEN, Pair, shake, stranger


def test_a_frame_cut_short_lands_on_its_own_pages_only() -> None:
    with Pair("tcp") as pair:
        pair.destination.exposed[1] = [4, 5]
        with stranger(pair) as sock:
            shake(pair, sock, HELLO)
            head = wire.encode_link(LinkWrite(1, 0, 2))
            sock.sendall(frames.HEADER.pack(len(head), 8192) + head + b"x" * 5000)
        pair.settle(lambda: "down" in pair.destination.names(), pair.destination)
        assert "landed" not in pair.destination.names()
        pool = pair.destination.pool
        assert not any(any(pool.page(page)) for page in range(256) if page not in (4, 5))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_it_listens_and_dials_over_ipv6() -> None:
    with Pair("tcp") as pair:
        identity = LinkIdentity("six", 6, LAYOUT, TOKEN)
        six = TcpTransport("::1", identity, pair.destination.pool, pair.destination)
        six.start()
        try:
            pair.transports[0].dial(Peer("six", 6, (six.endpoint,)))
            pair.settle(lambda: pair.source.links, pair.source)
        finally:
            six.close()
