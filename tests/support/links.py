"""Both ends of a data link without a worker, over every transport: for the contract tests."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from dopd.errors import LinkError
from dopd.kv.bytes_pool import BytesPool
from dopd.transfer import frames
from dopd.transfer.base import PROTOCOL, Link, LinkIdentity
from dopd.transfer.cuda_ipc import CudaIpcTransport
from dopd.transfer.fake import FakeNetwork, FakeTransport
from dopd.transfer.local import abstract
from dopd.transfer.nccl_link import NcclTransport
from dopd.transfer.pairing import Transports
from dopd.transfer.shm import ShmTransport
from dopd.transfer.stream import StreamTransport
from dopd.transfer.tcp import TcpTransport
from dopd.types import LinkEnd, LinkHello, LinkMessage, Peer
from tests.support.gpu.cuda import shared_folder
from tests.support.gpu.machine import StubGpu, StubPool
from tests.support.gpu.real import RealGpu, RealPool

WAIT_S = 30.0
TOKEN = "join-token"
LAYOUT = 0x1234
NUM_PAGES, PAGE_BYTES = 256, 4096
# Their pages are on a device: a double's. "staged" is tcp.
DEVICE_KINDS = ("nccl", "cuda_ipc", "staged")
# On the device of this machine.
REAL_NCCL = "real_nccl"
AnyPool = BytesPool | StubPool | RealPool
HELLO = LinkHello(PROTOCOL, "stranger", 77, LAYOUT, TOKEN)


class Recorder:
    """Takes a transport's events: writes go where `expose` said, everything is noted in order."""

    def __init__(self, pool: AnyPool, gpu: StubGpu | RealGpu | None = None) -> None:
        self.pool = pool
        self.gpu = gpu
        self.changed = threading.Condition()
        self.log: list[tuple[object, ...]] = []
        self.exposed: dict[int, list[int]] = {}
        self.links: list[Link] = []
        self.wanted = True
        # Called inside of an event, with its name and arguments.
        self.hook: Callable[..., None] = lambda *event: None

    def _note(self, *event: object) -> None:
        with self.changed:
            self.log.append(event)
            self.hook(*event)
            self.changed.notify_all()

    def hold_targets(self) -> tuple[threading.Event, threading.Event]:
        """From now on a reader waits between a Write's frame and its pages: an event that it sets
        when it is there, and one that lets it go on."""
        is_inside, may_go_on = threading.Event(), threading.Event()
        targets = self.targets

        def slow_targets(*arguments: Any) -> list[int]:
            is_inside.set()
            assert may_go_on.wait(10)
            return targets(*arguments)

        self.targets = slow_targets  # type: ignore[method-assign]
        return is_inside, may_go_on

    def names(self) -> list[object]:
        """The names of all events so far."""
        return [event[0] for event in self.log]

    def wants(self, peer: Peer) -> bool:
        return self.wanted

    def link_up(self, link: Link, peer: Peer | None) -> None:
        self.links.append(link)
        self._note("up", link.id)

    def link_down(self, link: Link) -> None:
        self._note("down", link.id)

    def begin(self, link: Link, nonce: int) -> None:
        self._note("begin", nonce)
        if nonce in self.exposed:
            link.go(nonce, self.exposed[nonce])

    def go(self, link: Link, nonce: int, num_pages: int, first: int = 0) -> None:
        self._note("go", nonce, num_pages)

    def targets(self, link: Link, nonce: int, first: int, count: int) -> list[int]:
        if nonce not in self.exposed:
            raise LinkError(f"{nonce} is not exposed")
        if count < 1 or first + count > len(self.exposed[nonce]):
            raise LinkError(f"{first}..{first + count} is not exposed")
        return self.exposed[nonce][first : first + count]

    def landed(self, link: Link, nonce: int, first: int, count: int) -> None:
        self._note("landed", nonce, first, count)

    def written(self, link: Link, nonce: int, count: int) -> None:
        self._note("written", nonce, count)

    def end(self, link: Link, end: LinkEnd) -> None:
        self._note("end", end.nonce, end.ok)


def is_of_device(kind: str) -> bool:
    """Whether a transport, or all of several, take their pages from a device."""
    return kind.split("+")[0] in DEVICE_KINDS


def recorder(kind: str, num_pages: int, page_bytes: int, folder: Path | None = None) -> Recorder:
    """One worker's events and pool, where its transport needs it. folder: of the doubles."""
    if kind == REAL_NCCL:
        real = RealGpu()
        return Recorder(real.pool(num_pages, page_bytes), real)
    if not is_of_device(kind):
        return Recorder(BytesPool(num_pages, page_bytes))
    assert folder is not None
    gpu = StubGpu(folder)
    return Recorder(gpu.pool(num_pages, page_bytes), gpu)


def open_stream(kind: str, identity: LinkIdentity, events: Recorder) -> StreamTransport:
    """One worker's transport over sockets, listening."""
    if events.gpu is not None:
        assert not isinstance(events.pool, BytesPool)
        pool, device = events.pool.own, events.gpu.cuda.device
        if kind == "cuda_ipc":
            return CudaIpcTransport(identity, pool, events, device)
        if kind == "staged":
            return TcpTransport("127.0.0.1", identity, pool, events, device)
        return NcclTransport("127.0.0.1", identity, pool, events, events.gpu.nccl.nccl, device)
    if kind == "shm":
        return ShmTransport(identity, events.pool, events)
    return TcpTransport("127.0.0.1", identity, events.pool, events)


class Pair(AbstractContextManager["Pair"]):
    """A source and a destination that can be joined over `kind`: "fake", "tcp", "shm", "shm+tcp",
    or on doubles of GPUs "nccl", "cuda_ipc", "staged", "cuda_ipc+staged".

    streams: the source's transports over sockets, then the destination's. `settle` waits until a
    condition holds.
    """

    def __init__(self, kind: str, num_pages: int = NUM_PAGES, page_bytes: int = PAGE_BYTES) -> None:
        self._left = ExitStack()
        folder = self._left.enter_context(shared_folder()) if is_of_device(kind) else None
        self.source = recorder(kind, num_pages, page_bytes, folder)
        self.destination = recorder(kind, num_pages, page_bytes, folder)
        self.network = FakeNetwork() if kind == "fake" else None
        self.random = random.Random(kind)
        self.kind = kind
        self.streams: list[StreamTransport] = []
        self.transports: list[Transports | FakeTransport] = [
            self._transport("source", 1, self.source),
            self._transport("destination", 2, self.destination),
        ]
        for page in range(num_pages):
            self.source.pool.page(page)[:] = bytes([page % 251 + 1]) * page_bytes

    def _transport(self, name: str, incarnation: int, events: Recorder) -> Any:
        identity = LinkIdentity(name, incarnation, LAYOUT, TOKEN)
        if self.network is not None:
            return self.network.transport(identity, events.pool, events)
        own = [open_stream(kind, identity, events) for kind in self.kind.split("+")]
        self.streams += own
        transports = Transports(own, events)
        transports.start()
        return transports

    @property
    def peer(self) -> Peer:
        """The destination, as a grant names it."""
        return Peer("destination", 2, self.transports[1].endpoints)

    def connect(self) -> Link:
        """A link from source to destination; the source's end of it."""
        before = len(self.source.links)
        self.transports[0].dial(self.peer)
        self.settle(lambda: len(self.source.links) > before, self.source)
        return self.source.links[-1]

    def settle(self, condition: Callable[[], object], where: Recorder) -> None:
        """Let things happen, in any order that the transport may choose, until the condition."""
        if self.network is not None:
            while pending := self.network.pending():
                self.network.deliver(self.random.choice(pending))
            assert condition(), where.log[-5:]
            return
        with where.changed:
            assert where.changed.wait_for(condition, WAIT_S), where.log[-5:]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._left:
            ends = (self.source, self.destination)
            for end in ends:
                end.wanted = False
            for transport in self.transports:
                transport.close()
            for end in ends:
                if end.gpu is not None and kind is None:
                    gpu = end.gpu
                    wait_for(lambda gpu=gpu: not gpu.left(), gpu.left)
                    gpu.check()


@contextmanager
def stranger(pair: Pair) -> Iterator[socket.socket]:
    """A bare socket to the destination."""
    address = pair.streams[1].endpoint.address
    if pair.kind in ("shm", "cuda_ipc"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(10)
            sock.connect(abstract(address))
            yield sock
        return
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        yield sock


def shake(pair: Pair, sock: socket.socket, hello: LinkMessage) -> LinkMessage:
    """A stranger's handshake, over shm and cuda_ipc with the source's pool."""
    own = [pair.source.pool.descriptor] if pair.kind == "shm" else []
    if isinstance(hello, LinkHello):
        hello = pair.streams[0]._own_hello(hello)
    frames.send_frame(sock, hello, [], own)
    return frames.receive_handshake(sock, 10)


def is_closed(sock: socket.socket) -> bool:
    """Whether the other side closed it; ours to wait for, at most the socket's time limit."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


def wait_for(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    """Until something holds that nobody is notified of."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.005)
