"""One connection between two workers: a reader thread and a writer thread over a stream socket.

The reader is the only one that lands bytes in the pool; when it is done, the link is synchronised
(T4), and it is the reader who reports `link_down`. The writer sends a first-in-first-out queue, so
that End is behind all writes (T1). Nobody else touches the socket, except to shut it. How pages
travel is each transport's own: `tcp.TcpLink`, `pulled_link.PulledLink`.
"""

from __future__ import annotations

import abc
import itertools
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from dopd.errors import DopdError, LinkError
from dopd.kv.base import PagePool
from dopd.transfer import frames
from dopd.transfer.base import START_BYTES_PER_S, LinkEvents
from dopd.types import LinkBegin, LinkEnd, LinkGo, LinkMessage, LinkPulled, LinkWrite

log = logging.getLogger(__name__)

# One Write frame: long enough for full speed, short enough that Begins of others get in between.
WRITE_BYTES_MAX = 4 << 20
WRITE_PAGES_MAX = 1024
# Queued operations. Each seat has a handful; only a peer that floods us gets near.
QUEUE_MAX = 65_536
# Shorter writes fit into the socket's buffer and measure nothing.
MEASURED_BYTES_MIN = 1 << 20
RATE_WEIGHT = 0.2

_ids = itertools.count(1)

Op = LinkBegin | LinkGo | LinkEnd | LinkPulled | tuple[int, int, list[int]]
"""A message, or a write: nonce, first, pages."""


@dataclass(frozen=True, slots=True)
class LinkParts:
    """What every link is made of.

    on_down: is told when it is down. descriptors: came with the handshake, and are closed with the
    socket.
    """

    sock: socket.socket
    pool: PagePool
    events: LinkEvents
    on_down: Callable[[StreamLink], None]
    label: str
    descriptors: list[int] = field(default_factory=list)


class StreamLink(abc.ABC):
    """See `dopd.transfer.base.Link`. Started once, by `start`."""

    # Of the transport that made it, which says so.
    transport = ""
    fence_s = 0.0

    def __init__(self, parts: LinkParts) -> None:
        self.id = next(_ids)
        self.bytes_per_s = START_BYTES_PER_S
        self.label = parts.label
        self._sock = parts.sock
        self._descriptors = parts.descriptors
        self._read_into = frames.reader(parts.sock)
        self._pool = parts.pool
        self._events = parts.events
        self._on_down = parts.on_down
        # Guards the two fields below; taken after the desk's lock, never before it.
        self._changed = threading.Condition(threading.Lock())
        self._queue: deque[Op] = deque()
        self._is_shut = False
        self._synchronised = threading.Event()
        self._writer = threading.Thread(target=self._write, name=f"link-{self.id}-w", daemon=True)
        self._reader = threading.Thread(target=self._read, name=f"link-{self.id}-r", daemon=True)
        # The writer's frames are cut to whole pages.
        self._frame_pages = min(max(WRITE_BYTES_MAX // parts.pool.page_bytes, 1), WRITE_PAGES_MAX)

    def start(self) -> None:
        """Begin to read and write. Without threads for it the link is down at once."""
        try:
            self._writer.start()
            self._reader.start()
        except RuntimeError as error:
            self._end(f"no thread for it: {error}")

    # What the desk calls, under its lock: never blocks, never raises

    def begin(self, nonce: int) -> None:
        """See `Link.begin`."""
        self._put(LinkBegin(nonce))

    def go(self, nonce: int, pages: list[int], first: int = 0) -> None:
        """See `Link.go`."""
        self._put(LinkGo(nonce, pages, first))

    def write(self, nonce: int, first: int, pages: list[int]) -> None:
        """See `Link.write`."""
        self._put((nonce, first, pages))

    def end(self, end: LinkEnd) -> None:
        """See `Link.end`."""
        if not end.ok:
            with self._changed:
                writes = (op for op in self._queue if not is_write_of(op, end.nonce))
                self._queue = deque(writes)
        self._put(end)

    def abort(self, reason: str) -> None:
        """See `Link.abort`."""
        with self._changed:
            if self._is_shut:
                return
            self._is_shut = True
            self._queue.clear()
            self._changed.notify()
        log.info("data link %s is shut: %s", self.label, reason)
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            # The peer was faster; the reader sees the end anyway.
            log.debug("shutdown of data link %s: %s", self.label, error)

    def synchronise(self, timeout_s: float) -> bool:
        """See `Link.synchronise`."""
        return self._synchronised.wait(timeout_s)

    # What a transport does its own way

    @abc.abstractmethod
    def _write_pages(self, nonce: int, first: int, pages: list[int]) -> None:
        """Writer thread: make our pages the peer's, at most `_frame_pages` of them."""

    @abc.abstractmethod
    def _land(self, write: LinkWrite, num_payload: int) -> None:
        """Reader thread: a Write, whose payload is still to be read. Raises LinkError, OSError."""

    def _pulled(self, message: LinkPulled) -> None:
        """Reader thread: the peer has copied pages."""
        raise LinkError("pages are sent on this link, nobody pulls them")

    def join(self) -> None:
        """What is left of the handshake, in its thread. Raises LinkError: the link never comes up.

        Whatever it waits for has a limit, and it ends when the link is aborted.
        """
        return

    def _quiesce(self) -> bool:
        """Last act, no other thread is left: nothing lands any more when this returns True (T4)."""
        return True

    def _measure(self, num_bytes: int, seconds: float) -> None:
        if num_bytes >= MEASURED_BYTES_MIN and seconds > 0:
            self.bytes_per_s += RATE_WEIGHT * (num_bytes / seconds - self.bytes_per_s)

    def _put(self, op: Op) -> None:
        with self._changed:
            if self._is_shut:
                return
            is_flooded = len(self._queue) >= QUEUE_MAX
            if not is_flooded:
                self._queue.append(op)
                self._changed.notify()
        if is_flooded:
            self.abort(f"{QUEUE_MAX} operations are queued, the peer does not read")

    # Writer thread

    def _write(self) -> None:
        reason = "writer failed"
        try:
            while (op := self._take()) is not None:
                if isinstance(op, tuple):
                    self._write_pages(*op)
                else:
                    frames.send_frame(self._sock, op, [])
        except (OSError, DopdError) as error:
            reason = f"send failed: {error}"
        finally:
            # Whatever ended it: a link that does not write is down.
            self.abort(reason)

    def _take(self) -> Op | None:
        with self._changed:
            while not self._queue and not self._is_shut:
                self._changed.wait()
            if self._is_shut:
                return None
            op = self._queue.popleft()
            if not isinstance(op, tuple) or len(op[2]) <= self._frame_pages:
                return op
            # One frame's worth; the rest stays first in the queue, where an abort can drop it.
            nonce, first, pages = op
            n = self._frame_pages
            self._queue.appendleft((nonce, first + n, pages[n:]))
            return nonce, first, pages[:n]

    # Reader thread

    def _read(self) -> None:
        reason = "reader failed"
        try:
            while lengths := frames.receive_header(self._read_into, frames.MESSAGE_BYTES_MAX):
                self._receive(*lengths)
            reason = "peer ended it"
        except (OSError, DopdError) as error:
            reason = str(error)
        finally:
            self._end(reason)

    def _end(self, reason: str) -> None:
        """The last act of the reader, or of who could not start it."""
        if self._come_to_rest(reason):
            self._events.link_down(self)

    def abandon(self, reason: str) -> None:
        """End a link that was never up: nobody is told."""
        self._come_to_rest(reason)

    def _come_to_rest(self, reason: str) -> bool:
        self.abort(reason)
        if self._writer.ident is not None:
            self._writer.join()
        # From then on nothing of this link can land: only the reader ever wrote to the pool, or
        # had others write to it.
        is_at_rest = self._quiesce()
        self._sock.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        if not is_at_rest:
            log.error(
                "data link %s does not come to rest: what it may still write to stays fenced until "
                "this worker starts anew",
                self.label,
            )
            return False
        self._synchronised.set()
        self._on_down(self)
        return True

    def _receive(self, num_message: int, num_payload: int) -> None:
        message = frames.receive_message(self._read_into, num_message)
        if num_payload and not isinstance(message, LinkWrite):
            raise LinkError(f"{type(message).__name__} with a payload of {num_payload} bytes")
        self._handle(message, num_payload)

    def _handle(self, message: LinkMessage, num_payload: int) -> None:
        match message:
            case LinkWrite():
                self._land(message, num_payload)
            case LinkPulled():
                self._pulled(message)
            case LinkBegin(nonce):
                self._events.begin(self, nonce)
            case LinkGo(nonce, pages, first):
                self._events.go(self, nonce, len(pages), first)
            case LinkEnd():
                self._events.end(self, message)
            case _:
                raise LinkError(f"{type(message).__name__} on a link that is up")


def is_write_of(op: Op, nonce: int) -> bool:
    """Whether a queued operation writes pages of this shipment."""
    return isinstance(op, tuple) and op[0] == nonce
