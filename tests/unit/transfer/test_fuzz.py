"""Whatever a peer sends on a link or in a handshake: it gets what the protocol gives, or the end.

The links are real, over one end of a socket pair; the other end is hypothesis.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dopd import wire
from dopd.errors import LinkError
from dopd.kv.bytes_pool import BytesPool
from dopd.transfer import frames
from dopd.transfer.base import PROTOCOL
from dopd.transfer.cuda_ipc import CudaIpcLink, PeerPool
from dopd.transfer.shm import ShmLink
from dopd.transfer.stream_link import LinkParts, StreamLink
from dopd.transfer.tcp import TcpLink
from dopd.types import (
    LinkBegin,
    LinkEnd,
    LinkGo,
    LinkHello,
    LinkMessage,
    LinkPulled,
    LinkWelcome,
    LinkWrite,
    PoolHandle,
)
from tests.support.cases import cases
from tests.support.gpu.machine import StubGpu, StubPool
from tests.support.links import LAYOUT, TOKEN, Pair, Recorder, stranger

KINDS = pytest.mark.parametrize("kind", ["tcp", "shm", "cuda_ipc"])
PAGES, PAGE = 8, 64
EXPOSED = {1: [5, 2, 7], 2: [0]}

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
text = st.text(max_size=20)
pool_handles = st.builds(PoolHandle, st.binary(max_size=20), st.binary(max_size=80), u64, u64)
# Near what is right, so that much of it is.
near_nonce = st.sampled_from([1, 1, 1, 2, 3, 2**64 - 1])
near = st.one_of(st.integers(0, 3), st.integers(0, 9), u32)
messages = st.one_of(
    st.builds(LinkBegin, near_nonce),
    st.builds(LinkGo, near_nonce, st.lists(u32, max_size=5)),
    st.builds(LinkWrite, near_nonce, near, near, st.lists(near, max_size=4)),
    st.builds(LinkPulled, near_nonce, near),
    st.builds(LinkEnd, near_nonce, st.booleans(), u32, u32, st.lists(u32, max_size=5), u64,
              st.none() | u64),
    st.builds(LinkHello, u32, text, u64, u64, text, st.none() | pool_handles),
    st.builds(LinkWelcome, text, u64, u64, text, st.binary(max_size=200)),
)  # fmt: skip


@st.composite
def good_writes(draw: st.DrawFn) -> tuple[LinkMessage, int]:
    """Writes that land on one kind of link: with as many pages of payload, or of places."""
    nonce = draw(st.sampled_from([1, 2]))
    count = draw(st.integers(1, len(EXPOSED[nonce])))
    first = draw(st.integers(0, len(EXPOSED[nonce]) - count))
    if draw(st.booleans()):
        return LinkWrite(nonce, first, count), count * PAGE
    places = draw(st.lists(st.integers(0, PAGES - 1), min_size=count, max_size=count))
    return LinkWrite(nonce, first, count, places), 0


sent = st.lists(
    good_writes() | st.tuples(messages, st.sampled_from([0, 0, 0, 1, PAGE, 2 * PAGE])), max_size=6
)


@cache
def gpus() -> tuple[StubGpu, StubGpu]:
    """Of the source and of the destination; their memory is there as long as the process."""
    folder = tempfile.mkdtemp(prefix="dopd-fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return StubGpu(Path(folder)), StubGpu(Path(folder))


@cache
def device_pools() -> tuple[StubPool, StubPool]:
    """One each, as long as the process: a double has room for some thousands and frees none."""
    source, destination = gpus()
    return source.pool(PAGES, PAGE), destination.pool(PAGES, PAGE)


def peer_pool(theirs: StubGpu, ours: StubGpu, pool: StubPool) -> PeerPool:
    """The source's pool, opened at the destination."""
    device = theirs.cuda.device
    own = device.ipc_handle(pool.address(0))
    handle = PoolHandle(device.driver.uuid(0), own.handle, own.offset, PAGES * PAGE)
    return PeerPool(ours.cuda.device, handle, PAGE)


class Peer:
    """The other end of a link."""

    def __init__(self, kind: str) -> None:
        self.gpus = gpus() if kind == "cuda_ipc" else None
        self.source, pool = (
            (BytesPool(PAGES, PAGE), BytesPool(PAGES, PAGE))
            if self.gpus is None
            else device_pools()
        )
        pool.fill(range(PAGES), 0)
        for page in range(PAGES):
            self.source.page(page)[:] = bytes([100 + page]) * PAGE
        self.events = Recorder(pool)
        self.events.exposed.update(EXPOSED)
        self.downs: list[StreamLink] = []
        self.sock, sock = socket.socketpair()
        self.link: StreamLink
        if self.gpus is not None:
            assert isinstance(pool, StubPool) and isinstance(self.source, StubPool)
            own = peer_pool(*self.gpus, self.source)
            parts = LinkParts(sock, pool.own, self.events, self.downs.append, kind)
            self.link = CudaIpcLink(parts, own)
        elif kind == "tcp":
            self.link = TcpLink(LinkParts(sock, pool, self.events, self.downs.append, kind))
        else:
            assert self.source.descriptor is not None
            files = [os.dup(self.source.descriptor)]
            self.link = ShmLink(LinkParts(sock, pool, self.events, self.downs.append, kind, files))
        self.link.start()

    def send_and_leave(self, data: bytes) -> None:
        """All of it, then the end; until the link is down."""
        reader = threading.Thread(target=self._read_all)
        reader.start()
        try:
            self.sock.sendall(data)
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            # The link has heard enough.
            pass
        with self.events.changed:
            assert self.events.changed.wait_for(lambda: "down" in self.events.names(), 30)
        assert self.link.synchronise(0)
        self.sock.shutdown(socket.SHUT_RD)
        reader.join(30)
        self.sock.close()
        assert self.downs == [self.link]
        for gpu in self.gpus or ():
            gpu.check()
            assert not gpu.left()

    def _read_all(self) -> None:
        try:
            while self.sock.recv(65_536):
                pass
        except OSError:
            pass


def expected(kind: str, what: list[tuple[LinkMessage, int]]) -> tuple[list[Any], bytearray]:
    """Events of a link that is sent this, and its pool: the protocol once more, in small."""
    log: list[Any] = []
    pool = bytearray(PAGES * PAGE)
    for message, num_payload in what:
        match message:
            case LinkWrite(nonce, first, count, places):
                targets = EXPOSED.get(nonce, [])[first : first + count]
                is_whole = count > 0 and len(targets) == count
                is_sent = num_payload == count * PAGE
                is_placed = (num_payload, len(places)) == (0, count) and max(
                    places, default=0
                ) < PAGES
                if not is_whole or not (is_sent if kind == "tcp" else is_placed):
                    return log, pool
                for index, page in enumerate(targets):
                    value = 7 if kind == "tcp" else 100 + places[index]
                    pool[page * PAGE : (page + 1) * PAGE] = bytes([value]) * PAGE
                log.append(("landed", nonce, first, count))
            case LinkBegin(nonce) if not num_payload:
                log.append(("begin", nonce))
            case LinkGo(nonce, pages) if not num_payload:
                log.append(("go", nonce, len(pages)))
            case LinkEnd(nonce, ok) if not num_payload:
                log.append(("end", nonce, ok))
            case _:
                return log, pool
    return log, pool


@KINDS
@cases(150)
@given(what=sent)
@example(what=[(LinkWrite(1, 0, 3, [1, 2, 3]), 0), (LinkEnd(1, True), 0)])
@example(what=[(LinkWrite(1, 0, 3), 3 * PAGE), (LinkEnd(1, True), 0)])
@example(what=[(LinkWrite(1, 0, 3, [1, 2, PAGES]), 0)])
@example(what=[(LinkWrite(1, 2**32 - 1, 2**32 - 1), PAGE)])
@example(what=[(LinkWrite(1, 1, 3, [1, 2, 3]), 0)])
def test_a_link_does_what_the_protocol_says_up_to_the_first_lie(
    kind: str, what: list[tuple[LinkMessage, int]]
) -> None:
    peer = Peer(kind)
    data = bytearray()
    for message, num_payload in what:
        head = wire.encode_link(message)
        data += frames.HEADER.pack(len(head), num_payload) + head + b"\7" * num_payload
    peer.send_and_leave(bytes(data))
    log, pool = expected(kind, what)
    assert peer.events.log == [*log, ("down", peer.link.id)]
    assert bytes(peer.events.pool.memory) == bytes(pool)


@KINDS
@cases(150)
@given(data=st.binary(max_size=200), cut=st.integers(0, 200))
@example(data=b"", cut=0)
@example(data=frames.HEADER.pack(2**32 - 1, 0), cut=200)
@example(data=frames.HEADER.pack(0, 2**32 - 1), cut=200)
def test_any_bytes_end_a_link_and_touch_no_page_that_is_not_exposed(
    kind: str, data: bytes, cut: int
) -> None:
    """Behind a write that is right, cut anywhere."""
    head = wire.encode_link(LinkWrite(1, 0, 1, [] if kind == "tcp" else [3]))
    right = frames.HEADER.pack(len(head), PAGE if kind == "tcp" else 0) + head + b"\7" * PAGE
    peer = Peer(kind)
    peer.send_and_leave(right[:cut] + data)
    pool = peer.events.pool
    assert not any(any(pool.page(page)) for page in (1, 3, 4, 6))
    assert peer.events.names()[-1] == "down"


@given(data=st.binary(max_size=100), parts=st.integers(1, 5))
@example(data=frames.HEADER.pack(frames.HELLO_BYTES_MAX + 1, 0), parts=1)
@example(data=frames.HEADER.pack(1, 1), parts=8)
def test_any_bytes_are_a_handshake_or_a_link_error(data: bytes, parts: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        size = -(-len(data) // parts) or 1
        for start in range(0, len(data), size):
            theirs.sendall(data[start : start + size])
        theirs.shutdown(socket.SHUT_WR)
        try:
            message = frames.receive_handshake(ours, 10)
        except LinkError:
            return
        assert isinstance(message, LinkMessage)


@given(message=messages)
def test_every_message_survives_its_frame(message: LinkMessage) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames.send_frame(theirs, message, [])
        assert frames.receive_handshake(ours, 10) == message


OTHER = "somebody else's"
hellos = st.builds(
    LinkHello,
    st.sampled_from([PROTOCOL, PROTOCOL, PROTOCOL, 0, 2**32 - 1]),
    text,
    u64,
    st.sampled_from([LAYOUT, LAYOUT, LAYOUT, 0]),
    st.sampled_from([TOKEN, TOKEN, TOKEN, "", OTHER]),
)


@pytest.mark.hypothesis
@pytest.mark.parametrize("kind", ["tcp", "shm"])
def test_a_hello_is_taken_if_everything_in_it_is_right_and_not_otherwise(kind: str) -> None:
    with Pair(kind) as pair:
        pool = pair.source.pool.descriptor
        unsealed = os.memfd_create("unsealed")
        os.ftruncate(unsealed, PAGE)
        taken: list[bool] = []

        @cases(150)
        @given(hello=hellos, files=st.sampled_from([[pool], [pool], [pool], [], [unsealed]]))
        def check(hello: LinkHello, files: list[int]) -> None:
            is_right = (hello.protocol, hello.layout_hash, hello.join_token) == (
                PROTOCOL,
                LAYOUT,
                TOKEN,
            ) and (kind == "tcp" or files == [pool])
            with stranger(pair) as sock:
                frames.send_frame(sock, hello, [], files if kind == "shm" else [])
                welcome = frames.receive_handshake(sock, 10)
                assert isinstance(welcome, LinkWelcome)
                assert (welcome.error == "") == is_right, welcome
                assert OTHER not in welcome.error
            taken.append(is_right)

        check()
        os.close(unsealed)
        assert set(taken) == {True, False}
        assert 0 < pair.destination.names().count("up") <= sum(taken)
