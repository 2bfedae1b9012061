"""The nccl transport: pages go from GPU to GPU over a communicator of two ranks, one for each link.

The control connection is TCP's, handshake and all; the listening side is rank 0 and makes the id,
which goes out in its welcome, so only to who showed the join token. Both ends join in the thread of
their handshake, before the link is up. A Write has no payload: the source posts one send for each
page, the destination as many receives when it reads the frame, and says Pulled when they are in
place (T3); it goes on to the next Write meanwhile, and to no other message (T1). So a send without
its receive, or the other way round, is under way only between two frames of a connection that both
ends watch.

Each end calls the communicator from one thread at a time: the handshake's; then the source's writer
or the destination's reader, and the reader to ask whether it is well; last the reader, when the
writer is gone, to abort it. What a peer's death leaves spinning on the device ends with that, and
nothing of the link lands once the stream is synchronised after it (T4).
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from dopd.errors import LinkError, LinkRefusedError
from dopd.kv.base import PagePool
from dopd.transfer import frames
from dopd.transfer.base import LinkEvents, LinkIdentity
from dopd.transfer.cuda import Device, Event, Stream, poll
from dopd.transfer.nccl import UNIQUE_ID_BYTES, Communicator, Nccl
from dopd.transfer.pulled_link import PulledLink
from dopd.transfer.rest import come_to_rest
from dopd.transfer.stream import Shaken
from dopd.transfer.stream_link import LinkParts, StreamLink
from dopd.transfer.tcp import TcpTransport, tune
from dopd.types import LinkMessage, LinkPulled, LinkWelcome, LinkWrite

log = logging.getLogger(__name__)

# One Write is one group of sends. NCCL takes thousands, but none of them is done before the last.
GROUP_PAGES_MAX = 64
GROUP_BYTES_MAX = 64 << 20
# Groups that a source has under way. A stream takes about a thousand launches, then it waits inside
# of NCCL, where no abort reaches it.
GROUPS_MAX = 8
# Groups of receives that a destination has on its stream, besides the newest: while one is waited
# for, the next one moves.
LANDING_MAX = 1
# Two ranks find each other in a second or so; the first time in a process takes longer.
JOIN_S = 20.0
# From a Write's frame to its Pulled, behind GROUPS_MAX others.
WRITE_S = 10.0
# An abort. It frees memory, for which CUDA may wait for kernels of other links, until their limits
# end these; and a rank on the same machine waits for the other's abort, or its death (proxy.cc).
ABORT_S = 60.0
# A fence that is overdue by the worker's limit may be a slow peer's, and a communicator takes
# seconds to make anew: more than one step of a stalled source, less than a lease.
FENCE_S = 2.0
# How soon an idle link notices that its communicator broke, or that a Write is overdue.
WATCH_S = 0.5


class NcclLink(PulledLink):
    """See `PulledLink`."""

    fence_s = FENCE_S

    def __init__(self, parts: LinkParts, shaken: Shaken, nccl: Nccl, device: Device) -> None:
        super().__init__(parts)
        self._is_source = not shaken.is_listener
        self._unique_id = shaken.welcome.nccl_id
        self._nccl = nccl
        self._device = device
        self._stream: Stream | None = None
        self._communicator: Communicator | None = None
        # Receives under way and their ends, oldest first. Of the reader.
        self._landing: deque[tuple[LinkWrite, Event]] = deque()
        most = min(GROUP_PAGES_MAX, GROUP_BYTES_MAX // parts.pool.page_bytes)
        self._frame_pages = max(most, 1)
        self._is_abandoned = False
        self._checked_at = time.monotonic()
        self._hang_up = select.poll()
        self._hang_up.register(parts.sock, select.POLLRDHUP)
        self._readable = select.poll()
        self._readable.register(parts.sock, select.POLLIN | select.POLLRDHUP)
        self._read_into = self._watched(self._read_into)

    def join(self) -> None:
        """See `StreamLink.join`. LinkRefusedError: it is our end that cannot."""
        try:
            self._device.use()
            self._stream = self._device.stream()
            self._communicator = self._nccl.join(self._unique_id, rank=int(self._is_source))
            self._wait(self._communicator.is_ready, JOIN_S, "the other rank has not joined")
        except LinkError as error:
            if not self._is_source:
                self._nccl.retire(self._unique_id)
            elif not self._is_shut and not self._has_hung_up():
                raise LinkRefusedError(str(error)) from error
            raise

    def abandon(self, reason: str) -> None:
        """See `StreamLink.abandon`. Nobody was told of a page, so there is nothing to wait for."""
        self._is_abandoned = True
        super().abandon(reason)

    # Source

    def _write_pages(self, nonce: int, first: int, pages: list[int]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_shut or self._has_room(), WRITE_S)
            if self._is_shut or not self._has_room():
                raise LinkError(f"{len(self._sent)} writes are under way, {GROUPS_MAX} may be")
        self._note_sent(nonce, len(pages))
        frames.send_frame(self._sock, LinkWrite(nonce, first, len(pages)), [])
        self._post(self._up()[0].send, pages)

    def _pulled(self, message: LinkPulled) -> None:
        super()._pulled(message)
        with self._changed:
            self._changed.notify()

    def _has_room(self) -> bool:
        return len(self._sent) < GROUPS_MAX

    # Destination

    def _land(self, write: LinkWrite, num_payload: int) -> None:
        if num_payload or write.source_pages or not 0 < write.count <= self._frame_pages:
            raise LinkError(
                f"write of {write.count} pages with {num_payload} bytes and "
                f"{len(write.source_pages)} places: 1 to {self._frame_pages} and none are taken"
            )
        if self._is_source:
            raise LinkError("a write from the end that is written to")
        # Who is asked knows what has landed, and not what is about to (T2).
        while any(overlap(write, earlier) for earlier, _ in self._landing):
            self._complete()
        pages = self._events.targets(self, write.nonce, write.first, write.count)
        communicator, stream = self._up()
        self._post(communicator.receive, pages)
        self._landing.append((write, stream.record()))
        if len(self._landing) > LANDING_MAX:
            self._complete()

    def _handle(self, message: LinkMessage, num_payload: int) -> None:
        # Whatever it is, it is behind the writes that came before it (T1).
        while self._landing and not isinstance(message, LinkWrite):
            self._complete()
        super()._handle(message, num_payload)

    def _complete(self) -> None:
        """Wait for the oldest group of receives."""
        write, event = self._landing[0]
        self._wait(event.is_done, WRITE_S, _unsent(write))
        # A communicator that breaks ends its kernels as well, whatever they have received.
        self._up()[0].is_ready()
        self._landing.popleft()
        event.close()
        self._events.landed(self, write.nonce, write.first, write.count)
        self._put(LinkPulled(write.nonce, write.count))

    # Both

    def _up(self) -> tuple[Communicator, Stream]:
        assert self._communicator is not None and self._stream is not None, "never joined"
        return self._communicator, self._stream

    def _post(self, post: Callable[[Sequence[int], int, int], None], pages: list[int]) -> None:
        """Queue a group and wait until it is on the stream: what is queued or recorded there next
        is behind it."""
        communicator, stream = self._up()
        self._device.use()
        addresses = [self._pool.address(page) for page in pages]
        post(addresses, self._pool.page_bytes, stream.handle)
        self._wait(communicator.is_ready, WRITE_S, f"a group of {len(pages)} pages is not launched")

    def _wait(self, condition: Callable[[], bool], within_s: float, what: str) -> None:
        """Raises LinkError if the condition does, after a time, or when nobody waits any more."""

        def holds() -> bool:
            if self._is_shut:
                raise LinkError(f"shut; {what}")
            if self._has_hung_up():
                raise LinkError(f"peer ended it; {what}")
            return condition()

        if not poll(holds, within_s):
            raise LinkError(f"{what} within {within_s:g} s")

    def _has_hung_up(self) -> bool:
        return bool(self._hang_up.poll(0))

    def _watched(self, read: frames.Read) -> frames.Read:
        """Reads, and sees meanwhile whether all is well: a dead peer's sends spin in silence."""

        def watched(views: Sequence[memoryview]) -> int:
            while not self._readable.poll(0 if self._landing else WATCH_S * 1000):
                if not self._landing:
                    self._check()
                    continue
                # The next frame comes, or the oldest group of receives is done.
                write, event = self._landing[0]
                self._wait(partial(self._is_any, event), WRITE_S, _unsent(write))
                if event.is_done():
                    self._complete()
            # A peer that talks all the time is looked after as well.
            if time.monotonic() - self._checked_at > WATCH_S:
                self._check()
            return read(views)

        return watched

    def _is_any(self, event: Event) -> bool:
        return event.is_done() or bool(self._readable.poll(0))

    def _check(self) -> None:
        self._checked_at = time.monotonic()
        self._device.use()
        # Says only whether it is broken; whether it is ready is the business of who posted.
        self._up()[0].is_ready()
        if self._sent and time.monotonic() - self._sent[0][2] > WRITE_S:
            nonce, count, _ = self._sent[0]
            raise LinkError(
                f"{count} pages of shipment {nonce:#x} were not pulled within {WRITE_S:g} s"
            )

    def _quiesce(self) -> bool:
        for _, event in self._landing:
            event.close()
        if self._communicator is not None and not self._abort(self._communicator):
            return False
        if self._stream is None:
            return True
        if not come_to_rest(self._stream):
            return False
        self._stream.close()
        return True

    def _abort(self, communicator: Communicator) -> bool:
        """Whether it came back. NCCL has no limit for it, so a thread of its own waits; and where
        pages wait for that, so do we: they are given back as late as it comes."""

        def abort() -> None:
            # The library leaves a thread on the device that it found there: on a new thread that is
            # the first one, where it would make a context if ours is another.
            try:
                self._device.use()
            except LinkError as error:
                log.error("data link %s: %s", self.label, error)
            communicator.abort()

        thread = threading.Thread(target=abort, name=f"link-{self.id}-a", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            log.error("data link %s: no thread to abort it in: %s", self.label, error)
            abort()
            return True
        thread.join(ABORT_S)
        if thread.is_alive() and not self._is_abandoned:
            text = (
                "data link %s: its abort takes more than %g s: pages stay fenced until it is done"
            )
            log.error(text, self.label, ABORT_S)
            thread.join()
        return not thread.is_alive()


def overlap(one: LinkWrite, other: LinkWrite) -> bool:
    """Whether two writes name a page of a shipment both."""
    first, end = max(one.first, other.first), min(one.first + one.count, other.first + other.count)
    return one.nonce == other.nonce and first < end


def _unsent(write: LinkWrite) -> str:
    return f"{write.count} pages were announced, but not sent"


class NcclTransport(TcpTransport):
    """See `StreamTransport`. device: where the pool is."""

    name = "nccl"

    def __init__(
        self,
        host: str,
        identity: LinkIdentity,
        pool: PagePool,
        events: LinkEvents,
        nccl: Nccl,
        device: Device,
    ) -> None:
        """Listens on a port of its own choice. Raises OSError."""
        super().__init__(host, identity, pool, events)
        self._nccl = nccl
        self._device = device

    def _make_link(self, sock: socket.socket, shaken: Shaken) -> StreamLink:
        size = len(shaken.welcome.nccl_id)
        if size != UNIQUE_ID_BYTES:
            raise LinkRefusedError(f"welcome with an id of {size} bytes, not {UNIQUE_ID_BYTES}")
        tune(sock)
        return NcclLink(self._parts(sock, shaken), shaken, self._nccl, self._device)

    def _own_welcome(self, welcome: LinkWelcome, left: ExitStack) -> LinkWelcome:
        try:
            self._device.use()
            unique_id = self._nccl.unique_id()
        except LinkError as error:
            return replace(welcome, error=str(error))
        left.callback(self._nccl.retire, unique_id)
        return replace(welcome, nccl_id=unique_id)
