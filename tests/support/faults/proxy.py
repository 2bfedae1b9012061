"""A TCP proxy on loopback that does to a connection what networks do: seeded and scripted.

One thread with an event loop a proxy. A `Plan` says what happens to the k-th connection in each
direction; `hold`, `reset`, `refuse` and `flap` act on all connections at once, now. `out` is from
the side that dialled to the upstream, `back` the other way.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")

CHUNK_BYTES = 64 << 10
# What is under way in one direction; then the sender's socket fills.
QUEUE_CHUNKS = 64
# A slow link has a short queue: what waits in it delays all that comes later.
SLOW_QUEUE_CHUNKS = 1
SLOW_CHUNK_BYTES = 4 << 10
CALL_TIMEOUT_S = 10.0
RESET = struct.pack("ii", 1, 0)


class Then(enum.Enum):
    """What happens to a connection at its byte `Way.after`."""

    CLOSE = "close"  # both ends see an orderly end
    RESET = "reset"  # both ends see a reset
    STALL = "stall"  # both sockets stay open, nothing more passes this way
    HALF_OPEN = "half open"  # the upstream's end is gone, the dialler is not told


Filter = Callable[["Pipe", bytes], bytes]
"""Gets what arrives, returns what goes on; `Pipe.later` sends more at its own time."""


@dataclass(frozen=True, slots=True)
class Way:
    """One direction of one connection.

    bytes_per_s: None: as fast as it goes. after: None: never. flip_at: the lowest bit of this byte
    is turned over, once.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None
    after: int | None = None
    then: Then = Then.CLOSE
    flip_at: int | None = None
    filter: Filter | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens to one connection."""

    out: Way = Way()
    back: Way = Way()


class Pipe:
    """One direction of one connection at work: a reader, a queue of what is due when, a writer."""

    def __init__(
        self, way: Way, gate: asyncio.Event, rng: random.Random, end: Callable[[Then], None]
    ) -> None:
        self.way = way
        self.num_bytes = 0
        self._gate = gate
        self._rng = rng
        self._end = end
        is_slow = way.bytes_per_s is not None
        self._chunk_bytes = SLOW_CHUNK_BYTES if is_slow else CHUNK_BYTES
        self._queue: asyncio.Queue[tuple[float, bytes | Then]] = asyncio.Queue(
            SLOW_QUEUE_CHUNKS if is_slow else QUEUE_CHUNKS
        )
        self._last_due = 0.0
        self._late: set[asyncio.Task[None]] = set()

    def later(self, delay_s: float, data: bytes) -> None:
        """Send more, after a while, behind what is queued then. From a filter."""

        async def send() -> None:
            await asyncio.sleep(delay_s)
            await self._queue.put((0.0, data))

        task = asyncio.get_running_loop().create_task(send())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    def drop_late(self) -> None:
        """The connection is over."""
        for task in self._late:
            task.cancel()

    async def read(self, source: socket.socket) -> None:
        """From the socket to the queue, until the end or the byte `after`."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.sock_recv(source, self._chunk_bytes)
            except OSError:
                await self._put(Then.RESET)
                return
            if not data:
                await self._put(Then.CLOSE)
                return
            passed = self._flip(data)
            after = self.way.after
            is_over = after is not None and self.num_bytes + len(data) >= after
            if is_over:
                passed = passed[: (after or 0) - self.num_bytes]
            self.num_bytes += len(data)
            if self.way.filter is not None:
                passed = self.way.filter(self, passed)
            if passed:
                await self._put(passed)
            if is_over:
                await self._put(self.way.then)
                return

    async def write(self, target: socket.socket) -> None:
        """From the queue to the socket, each piece when it is due and while the gate is open."""
        loop = asyncio.get_running_loop()
        while True:
            due, item = await self._queue.get()
            await asyncio.sleep(max(due - time.monotonic(), 0))
            await self._gate.wait()
            if isinstance(item, Then):
                self._end(item)
                return
            if self.way.bytes_per_s is not None:
                await asyncio.sleep(len(item) / self.way.bytes_per_s)
            try:
                await loop.sock_sendall(target, item)
            except OSError:
                self._end(Then.RESET)
                return

    async def _put(self, item: bytes | Then) -> None:
        way = self.way
        delay_s = way.latency_s + self._rng.uniform(-way.jitter_s, way.jitter_s)
        self._last_due = max(self._last_due, time.monotonic() + delay_s)
        await self._queue.put((self._last_due, item))

    def _flip(self, data: bytes) -> bytes:
        at = self.way.flip_at
        if at is None or not 0 <= at - self.num_bytes < len(data):
            return data
        changed = bytearray(data)
        changed[at - self.num_bytes] ^= 1
        return bytes(changed)


@dataclass(eq=False, slots=True)
class Connection:
    """One connection through a proxy; `task` does all its work."""

    dialler: socket.socket
    begun_s: float
    upstream: socket.socket | None = None
    pipes: list[Pipe] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    then: Then | None = None
    over: asyncio.Future[Then] | None = None

    def close(self, then: Then) -> None:
        """Close both ends, with a reset if asked for."""
        for sock in (self.dialler, self.upstream):
            if sock is not None and sock.fileno() >= 0:
                if then is Then.RESET:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.close()


class Proxy:
    """A proxy in front of `upstream` (HOST:PORT), which may be named later.

    plan: what happens to connection 0, 1, ...; may be replaced, for connections to come.
    """

    def __init__(
        self, upstream: str | None = None, *, seed: int = 0, host: str = "127.0.0.1"
    ) -> None:
        self.upstream = upstream
        self.plan: Callable[[int], Plan] = lambda _: Plan()
        # Of every connection ever taken, in order.
        self.begun_s: list[float] = []
        self._rng = random.Random(seed)
        self._listener = socket.create_server((host, 0), backlog=512)
        self._listener.setblocking(False)
        self.address = "{}:{}".format(*self._listener.getsockname())
        self._open: set[Connection] = set()
        self._is_refusing = False
        self._flapping: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._out, self._back = asyncio.Event(), asyncio.Event()
        self._out.set()
        self._back.set()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # From tests

    @property
    def num_open(self) -> int:
        """Connections that stand now."""
        return len(self._open)

    def hold(self, *, out: bool = True, back: bool = True) -> None:
        """A partition: nothing passes, in the directions named; `release` ends it.

        As on a network nobody is told, and what was sent meanwhile arrives afterwards.
        """
        self._do(self._set_gates(out=not out, back=not back))

    def release(self) -> None:
        """End what `hold`, `refuse` and `flap` began, and go back to passing all."""

        async def heal() -> None:
            if self._flapping is not None:
                self._flapping.cancel()
                self._flapping = None
            self._is_refusing = False
            self.plan = lambda _: Plan()
            await self._set_gates(out=True, back=True)

        self._do(heal())

    def reset(self) -> None:
        """Reset every connection now."""
        self._do(self._end_all(Then.RESET))

    def half_open(self) -> None:
        """The upstream's end of every connection is gone, and the diallers are not told."""
        self._do(self._forget_upstreams())

    def refuse(self) -> None:
        """From now on every new connection is reset as soon as it is taken; old ones stay."""
        self._is_refusing = True

    def flap(self, on_s: float, off_s: float) -> None:
        """Alternately pass and hold everything, until `release`."""

        async def begin() -> None:
            self._flapping = asyncio.get_running_loop().create_task(self._flap(on_s, off_s))

        self._do(begin())

    def close(self) -> None:
        """End all connections and the thread."""
        if not self._thread.is_alive():
            return

        async def end() -> None:
            if self._flapping is not None:
                self._flapping.cancel()
            self._accepting.cancel()
            await self._end_all(Then.CLOSE)
            self._listener.close()
            self._loop.stop()

        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run_coroutine_threadsafe(end(), self._loop)
        self._thread.join(CALL_TIMEOUT_S)
        assert not self._thread.is_alive(), "the proxy's thread does not end"

    # In the loop's thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._accepting = self._loop.create_task(self._accept())
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def _do(self, work: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT_S)

    async def _set_gates(self, *, out: bool, back: bool) -> None:
        for gate, is_open in ((self._out, out), (self._back, back)):
            if is_open:
                gate.set()
            else:
                gate.clear()

    async def _flap(self, on_s: float, off_s: float) -> None:
        while True:
            await asyncio.sleep(on_s)
            await self._set_gates(out=False, back=False)
            await asyncio.sleep(off_s)
            await self._set_gates(out=True, back=True)

    async def _end_all(self, then: Then) -> None:
        ending = list(self._open)
        tasks = [one.task for one in ending if one.task is not None]
        for one in ending:
            one.then = then
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A task that was cancelled before its first step has closed nothing.
        for one in ending:
            one.close(then)
            self._open.discard(one)

    async def _forget_upstreams(self) -> None:
        for one in list(self._open):
            if one.over is not None and not one.over.done():
                one.over.set_result(Then.HALF_OPEN)

    async def _accept(self) -> None:
        while True:
            dialler, _ = await self._loop.sock_accept(self._listener)
            dialler.setblocking(False)
            one = Connection(dialler, time.monotonic())
            index = len(self.begun_s)
            self.begun_s.append(one.begun_s)
            if self._is_refusing:
                one.close(Then.RESET)
                continue
            self._open.add(one)
            one.task = self._loop.create_task(self._carry(one, self.plan(index)))

    async def _carry(self, one: Connection, plan: Plan) -> None:
        over = one.over = self._loop.create_future()
        workers: list[asyncio.Task[None]] = []
        try:
            # In a partition a connection is not made either.
            await self._out.wait()
            await self._back.wait()
            if not await self._dial(one):
                one.then = Then.RESET
                return
            workers = self._start(one, plan, over)
            one.then = await over
            if one.then is Then.STALL or one.then is Then.HALF_OPEN:
                if one.then is Then.HALF_OPEN and one.upstream is not None:
                    await stop(workers)
                    one.upstream.close()
                await asyncio.Event().wait()
        finally:
            try:
                # Cancelled here as well, if the proxy is closed just now.
                await stop(workers)
            finally:
                for pipe in one.pipes:
                    pipe.drop_late()
                one.close(one.then or Then.CLOSE)
                self._open.discard(one)

    async def _dial(self, one: Connection) -> bool:
        if self.upstream is None:
            return False
        host, _, port = self.upstream.rpartition(":")
        one.upstream = socket.socket()
        one.upstream.setblocking(False)
        try:
            await self._loop.sock_connect(one.upstream, (host, int(port)))
        except OSError:
            return False
        for sock in (one.dialler, one.upstream):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return True

    def _start(
        self, one: Connection, plan: Plan, over: asyncio.Future[Then]
    ) -> list[asyncio.Task[None]]:
        def end(then: Then) -> None:
            if not over.done():
                over.set_result(then)

        assert one.upstream is not None
        out = Pipe(plan.out, self._out, self._rng, end)
        back = Pipe(plan.back, self._back, self._rng, end)
        one.pipes = [out, back]
        work = (
            out.read(one.dialler),
            out.write(one.upstream),
            back.read(one.upstream),
            back.write(one.dialler),
        )
        return [self._loop.create_task(part) for part in work]


async def stop(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel and wait, so that nobody uses a socket that is closed next."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
