"""What only shm has: a descriptor in the handshake, pages that are pulled, a user to check."""

from __future__ import annotations

import errno
import fcntl
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from dopd.errors import LinkError
from dopd.kv.bytes_pool import BytesPool
from dopd.kv.memory import SEALS
from dopd.transfer import frames, pulled_link, shm, stream, stream_link
from dopd.transfer.host import host_id
from dopd.transfer.local import abstract
from dopd.transfer.shm import PeerPages, ShmTransport
from dopd.types import (
    Endpoint,
    LinkBegin,
    LinkEnd,
    LinkHello,
    LinkMessage,
    LinkPulled,
    LinkWelcome,
    LinkWrite,
    Peer,
)
from tests.support.links import HELLO, LAYOUT, TOKEN, Pair, is_closed, shake, stranger

PAGE = 4096


def memory_file(num_bytes: int, seals: int) -> int:
    """A descriptor of a memory file, perhaps a wrong one."""
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, num_bytes)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def regular_file() -> int:
    with tempfile.TemporaryFile() as file:
        file.truncate(4 * PAGE)
        return os.dup(file.fileno())


def pipe() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


WITHOUT_SHRINK = SEALS & ~fcntl.F_SEAL_SHRINK


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: memory_file(4 * PAGE, 0), r"has seals 0x0, 0x17 are needed"),
        (lambda: memory_file(4 * PAGE, WITHOUT_SHRINK), r"has seals 0x15, 0x17 are needed"),
        (lambda: memory_file(PAGE - 1, SEALS), r"of 4095 bytes is not whole pages of 4096"),
        (lambda: memory_file(PAGE + 1, SEALS), r"of 4097 bytes is not whole pages of 4096"),
        (lambda: memory_file(0, SEALS), r"of 0 bytes is not whole pages of 4096"),
        (pipe, "is no memory file"),
        (lambda: os.open("/dev/zero", os.O_RDONLY), "is no memory file"),
        (regular_file, "(is no memory file|has seals 0x)"),
    ],
    ids=["no seals", "can shrink", "short", "odd", "empty", "pipe", "device", "file"],
)
def test_what_is_no_pool_of_a_peer_is_refused(make: Any, error: str) -> None:
    with Pair("shm") as pair, stranger(pair) as sock:
        descriptor = make()
        frames.send_frame(sock, HELLO, [], [descriptor])
        os.close(descriptor)
        welcome = frames.receive_handshake(sock, 10)
        assert isinstance(welcome, LinkWelcome)
        with pytest.raises(LinkError, match=error):
            raise LinkError(welcome.error)
        assert is_closed(sock)
        assert pair.destination.log == []


@pytest.mark.parametrize("count", [0, 2, 5])
def test_a_hello_brings_one_descriptor(count: int) -> None:
    with Pair("shm") as pair, stranger(pair) as sock:
        before = len(os.listdir("/proc/self/fd"))
        frames.send_frame(sock, HELLO, [], [pair.source.pool.descriptor] * count)
        if count == 0:
            welcome = frames.receive_handshake(sock, 10)
            assert isinstance(welcome, LinkWelcome)
            assert welcome.error == "hello without a memory file"
        assert is_closed(sock)
        assert pair.destination.log == []
        # One socket, the listener's end, may still be closing.
        assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_descriptors_that_come_one_by_one_are_refused_at_the_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "HANDSHAKE_S", 60.0)
    with Pair("shm") as pair, stranger(pair) as sock:
        assert pair.source.pool.descriptor is not None
        rights = pair.source.pool.descriptor.to_bytes(4, "little")
        cmsg = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
        sock.sendmsg([frames.HEADER.pack(4000, 0)], cmsg)
        sock.sendmsg([b"x"], cmsg)
        assert is_closed(sock)


def test_a_wrong_token_is_refused_before_its_descriptor_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def looked(*arguments: object) -> str:
        raise AssertionError("looked at it")

    monkeypatch.setattr(shm, "memory_error", looked)
    with Pair("shm") as pair, stranger(pair) as sock:
        welcome = shake(pair, sock, LinkHello(1, "x", 1, LAYOUT, "wrong"))
        assert isinstance(welcome, LinkWelcome)
        assert welcome.error == "join token of 'x' is wrong"


def test_another_user_is_not_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with Pair("shm") as pair:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with stranger(pair) as sock, pytest.raises((LinkError, ConnectionError)):
            shake(pair, sock, HELLO)
        assert pair.destination.log == []


DIAL = """
import os, socket, sys
os.setresuid(65534, 65534, 65534)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
sock.settimeout(60)
sock.connect("\\0" + sys.argv[1])
print("open", len(sock.recv(1)))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_process_of_another_user_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HANDSHAKE_S", 120.0)
    with Pair("shm") as pair:
        command = [sys.executable, "-I", "-S", "-c", DIAL, pair.streams[1].endpoint.address]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stdout == "open 0\n", done.stderr
        assert pair.destination.log == []


Taken = queue.SimpleQueue[socket.socket]


@contextmanager
def listening(answer: LinkMessage | None = None) -> Iterator[tuple[Peer, Taken]]:
    """Something in the place of a destination: takes one connection, and shakes hands."""
    taken = Taken()
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        name = f"dopd-test-{os.getpid()}-{id(taken)}"
        listener.bind(abstract(name))
        listener.listen()
        listener.settimeout(10)

        def take() -> None:
            sock, _ = listener.accept()
            stack.callback(sock.close)
            sock.settimeout(10)
            if answer is not None:
                descriptors: list[int] = []
                frames.receive_handshake(sock, 10, descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                frames.send_frame(sock, answer, [])
            taken.put(sock)

        thread = threading.Thread(target=take)
        thread.start()
        host = host_id()
        yield Peer("destination", 2, (Endpoint("shm", name, host),)), taken
        thread.join(10)


def test_a_listener_of_another_user_gets_neither_token_nor_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Pair("shm") as pair, listening() as (peer, taken):
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(LinkError, match="is of user"):
            pair.streams[0].connect(peer, peer.endpoints[0].address)
        assert taken.get(timeout=10).recv(1) == b""


WELCOME = LinkWelcome("destination", 2, 1)


@pytest.mark.parametrize(
    "pulled",
    [
        [LinkPulled(9, 2)],
        [LinkPulled(1, 3)],
        [LinkPulled(1, 1)],
        [LinkPulled(1, 0)],
        [LinkPulled(1, 2), LinkPulled(1, 2)],
    ],
    ids=["unknown nonce", "too many", "too few", "none", "twice"],
)
def test_what_was_not_written_cannot_be_pulled(pulled: list[LinkMessage]) -> None:
    """The source would take the pages for landed, and say End ok."""
    with Pair("shm") as pair, listening(WELCOME) as (peer, taken):
        pair.transports[0].dial(peer)
        pair.settle(lambda: pair.source.links, pair.source)
        pair.source.links[0].write(1, 0, [5, 6])
        sock = taken.get(timeout=10)
        read = frames.reader(sock)
        lengths = frames.receive_header(read, 4096)
        assert lengths is not None
        assert frames.receive_message(read, lengths[0]) == LinkWrite(1, 0, 2, [5, 6])
        for message in pulled:
            frames.send_frame(sock, message, [])
        pair.settle(lambda: "down" in pair.source.names(), pair.source)
        written = [event for event in pair.source.log if event[0] == "written"]
        assert written == ([("written", 1, 2)] if len(pulled) > 1 else [])


def test_a_page_is_written_when_it_was_pulled_and_not_before() -> None:
    """T3, held open: the destination is about to copy."""
    with Pair("shm") as pair:
        link = pair.connect()
        pair.destination.exposed[1] = [8]
        is_inside, may_go_on = pair.destination.hold_targets()
        link.write(1, 0, [3])
        assert is_inside.wait(10)
        assert "written" not in pair.source.names()
        may_go_on.set()
        pair.settle(lambda: ("written", 1, 1) in pair.source.log, pair.source)
        assert bytes(pair.destination.pool.page(8)) == bytes(pair.source.pool.page(3))


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        (LinkWrite(1, 0, 1, [256]), b""),
        (LinkWrite(1, 0, 2, [3, 2**32 - 1]), b""),
        (LinkWrite(1, 0, 2, [3]), b""),
        (LinkWrite(1, 0, 0, []), b""),
        (LinkWrite(1, 0, 2**32 - 1, [3]), b""),
        (LinkWrite(1, 2**32 - 1, 1, [3]), b""),
        (LinkWrite(1, 0, 1, []), b"x" * PAGE),
        (LinkWrite(1, 0, 1, [3]), b"x" * PAGE),
        (LinkWrite(7, 0, 1, [3]), b""),
        (LinkPulled(1, 1), b""),
    ],
)
def test_a_write_that_lies_lands_nowhere(message: LinkMessage, payload: bytes) -> None:
    with Pair("shm") as pair, stranger(pair) as sock:
        pair.destination.exposed[1] = [0, 1]
        shake(pair, sock, HELLO)
        frames.send_frame(sock, message, [memoryview(payload)] if payload else [])
        assert is_closed(sock)
        pair.settle(lambda: "down" in pair.destination.names(), pair.destination)
        assert not any(pair.destination.pool.memory)


def test_a_destination_takes_no_writes_from_one_it_sends_to() -> None:
    """Only the listening end has a peer's memory."""
    with Pair("shm") as pair, listening(WELCOME) as (peer, taken):
        pair.source.exposed[1] = [0]
        before = bytes(pair.source.pool.memory)
        pair.transports[0].dial(peer)
        pair.settle(lambda: pair.source.links, pair.source)
        frames.send_frame(taken.get(timeout=10), LinkWrite(1, 0, 1, [3]), [])
        pair.settle(lambda: "down" in pair.source.names(), pair.source)
        assert bytes(pair.source.pool.memory) == before


def test_descriptors_on_a_link_that_is_up_end_it_and_are_not_kept() -> None:
    with Pair("shm") as pair, stranger(pair) as sock:
        shake(pair, sock, HELLO)
        pair.settle(lambda: pair.destination.links, pair.destination)
        before = set(os.listdir("/proc/self/fd"))
        frames.send_frame(sock, LinkBegin(1), [], [pair.source.pool.descriptor] * 3)
        assert is_closed(sock)
        pair.settle(lambda: "down" in pair.destination.names(), pair.destination)
        assert set(os.listdir("/proc/self/fd")) <= before


def test_a_frame_cut_anywhere_ends_the_link_and_lands_nothing() -> None:
    with Pair("shm") as pair:
        pair.destination.exposed[1] = [0]
        ours, theirs = socket.socketpair()
        with theirs:
            frames.send_frame(ours, LinkWrite(1, 0, 1, [3]), [])
            frame = theirs.recv(1000)
        ours.close()
        for length in range(1, len(frame)):
            with stranger(pair) as sock:
                shake(pair, sock, HELLO)
                sock.sendall(frame[:length])
                sock.shutdown(socket.SHUT_WR)
                assert is_closed(sock)
        assert not any(pair.destination.pool.memory)
        assert "landed" not in pair.destination.names()


def test_a_source_that_never_reads_is_shut_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_link, "QUEUE_MAX", 64)
    with Pair("shm") as pair, stranger(pair) as sock:
        pair.destination.exposed[1] = [0]
        shake(pair, sock, HELLO)
        with pytest.raises(ConnectionError):
            for _ in range(100_000):
                frames.send_frame(sock, LinkWrite(1, 0, 1, [3]), [])
        pair.settle(lambda: "down" in pair.destination.names(), pair.destination)


def test_a_destination_that_never_pulls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulled_link, "QUEUE_MAX", 8)
    with Pair("shm") as pair, listening(WELCOME) as (peer, _):
        pair.transports[0].dial(peer)
        pair.settle(lambda: pair.source.links, pair.source)
        for nonce in range(10):
            pair.source.links[0].write(nonce, 0, [1])
            pair.source.links[0].end(LinkEnd(nonce, ok=False))
            pair.source.links[0].write(nonce, 0, [1, 2])
        pair.settle(lambda: "down" in pair.source.names(), pair.source)


def test_an_abort_is_heeded_between_two_runs_of_a_long_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A peer that names its whole pool in one write must not hold up synchronise() (T4)."""
    reads: list[int] = []
    is_inside, may_go_on = threading.Event(), threading.Event()

    def slow_read(self: PeerPages, first: int, views: list[memoryview]) -> None:
        reads.append(len(views))
        is_inside.set()
        assert may_go_on.wait(10)

    monkeypatch.setattr(PeerPages, "read", slow_read)
    with Pair("shm") as pair, stranger(pair) as sock:
        pair.destination.exposed[1] = list(range(200))
        shake(pair, sock, HELLO)
        frames.send_frame(sock, LinkWrite(1, 0, 200, list(range(0, 200, 2)) * 2), [])
        assert is_inside.wait(10)
        end = pair.destination.links[0]
        end.abort("test")
        assert not end.synchronise(0)
        may_go_on.set()
        assert end.synchronise(10)
        assert reads == [1]
        assert "landed" not in pair.destination.names()


def test_neighbouring_pages_are_read_in_one_call_and_others_in_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: list[tuple[int, int]] = []
    plain_read = PeerPages.read

    def noted(self: PeerPages, first: int, views: list[memoryview]) -> None:
        reads.append((first, len(views)))
        plain_read(self, first, views)

    monkeypatch.setattr(PeerPages, "read", noted)
    with Pair("shm") as pair:
        link = pair.connect()
        pages, targets = [4, 5, 6, 9, 8, 10, 11], [3, 1, 2, 50, 40, 30, 20]
        pair.destination.exposed[1] = targets
        link.write(1, 0, pages)
        pair.settle(lambda: "written" in pair.source.names(), pair.source)
        assert reads == [(4, 3), (9, 1), (8, 1), (10, 2)]
        for page, target in zip(pages, targets, strict=True):
            assert bytes(pair.destination.pool.page(target)) == bytes(pair.source.pool.page(page))


def test_a_file_that_ends_early_is_an_error_and_no_signal() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(4 * PAGE)
        pages = PeerPages(file.fileno(), PAGE)
        file.truncate(PAGE)
        page = memoryview(bytearray(PAGE))
        pages.read(0, [page])
        with pytest.raises(LinkError, match="memory file ended inside of a frame"):
            pages.read(0, [page, page])


def test_nobody_can_write_or_resize_the_memory_that_was_handed_out() -> None:
    pool = BytesPool(4, PAGE)
    assert pool.descriptor is not None
    for attempt in (
        lambda fd: os.ftruncate(fd, PAGE),
        lambda fd: os.ftruncate(fd, 5 * PAGE),
        lambda fd: os.pwrite(fd, b"x", 0),
        lambda fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    ):
        # A new open file of the same memory, as a peer could make one.
        again = os.open(f"/proc/self/fd/{pool.descriptor}", os.O_RDWR)
        with pytest.raises(PermissionError):
            attempt(again)
        os.close(again)
    assert not any(pool.memory)
    pool.page(2)[:4] = b"ours"
    assert os.pread(pool.descriptor, 4, 2 * PAGE) == b"ours"


def test_without_memory_files_there_is_a_pool_but_no_shm(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object) -> int:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", forbidden)
    pool = BytesPool(4, PAGE)
    pool.page(3)[:] = b"x" * PAGE
    assert pool.descriptor is None
    with Pair("tcp") as pair, pytest.raises(LinkError, match="no sealed memory file"):
        ShmTransport(pair.streams[0]._identity, pool, pair.source)


def test_the_socket_has_no_name_in_the_file_system() -> None:
    with Pair("shm") as pair:
        name = pair.streams[1].endpoint.address
        listed = Path("/proc/net/unix").read_text(encoding="ascii")
        assert f"@{name}\n" in listed
        assert TOKEN not in name
        assert not Path(name).exists()
