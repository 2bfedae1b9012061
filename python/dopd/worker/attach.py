"""The stream to the router: dial, hello, session, lease, and dial again.

Owns two threads: ours reads commands, gRPC's own draws reports from `Stream.requests`. That second
one also sends the heartbeats, so that they go on while a step runs, and watches the lease. The step
loop watches it too: gRPC asks for no report while the router does not read.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Iterable, Iterator

import grpc

from dopd import wire
from dopd.errors import ProtocolError
from dopd.types import Commands, Refusal, Welcome, WorkerFacts
from dopd.worker.desk import Desk
from dopd.worker.session import Lost, Started

log = logging.getLogger(__name__)

# A router that is there again, or a network, is found within CONNECT_S + BACKOFF_MAX_S.
BACKOFF_MIN_S, BACKOFF_MAX_S = 0.05, 0.8
CONNECT_S = 1.0
# From dialling to the router's welcome.
WELCOME_S = 5.0
# Until the welcome says how often.
START_INTERVAL_S = 0.2
# Reports that gRPC has not taken yet: 20 s of 20 ms steps. More: the router does not read.
# The step loop waits long before (desk.REPORTS_WAITING_MAX), but not for ever.
REPORTS_MAX = 1024
# Merged Opens of long prompts are the largest messages: 64 prompts of 131,072 tokens.
MESSAGE_BYTES_MAX = 64 << 20
FINISH_S = 1.0
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # We dial again ourselves, with a new hello.
    ("grpc.enable_retries", 0),
    # That long a connection may take to come up; gRPC's own measure is 20 s. The lease does what
    # keepalive pings would do later: heartbeats flow both ways, and half-open is silence.
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_S * 1e3)),
    # Channels to one address must not share a connection that is in back-off.
    ("grpc.use_local_subchannel_pool", 1),
)
# A router that answers so will not answer otherwise in a second.
FATAL_CODES = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INVALID_ARGUMENT,
    }
)


class Stream:
    """One try to be attached; after the welcome, a session. See `session.Session`."""

    def __init__(self, desk: Desk, facts: WorkerFacts) -> None:
        self.id = 0
        self._desk = desk
        self._facts = facts
        self._reports: queue.SimpleQueue[wire.AttachRequest | None] = queue.SimpleQueue()
        self._call: grpc.CallIterator[wire.AttachResponse] | None = None
        self._interval_s = START_INTERVAL_S
        # Silence that we bear. Written by the reader thread, read by the sender thread.
        self._lease_s = WELCOME_S
        self._heard_at = time.monotonic()
        self._is_failed = False
        self._is_ended = threading.Event()

    def open(self, channel: grpc.Channel, token: str) -> Iterable[wire.AttachResponse]:
        """Dial; the router's messages."""
        self._call = wire.attach_stream(channel, self.requests(), token)
        return self._call

    def welcome(self, welcome: Welcome) -> None:
        """The router took us in."""
        self.id = welcome.session
        self._interval_s = welcome.report_interval_s
        self._lease_s = welcome.lease_s

    def heard(self) -> bool:
        """Something came from the router: the lease begins anew, unless it was over before. So a
        process that was stopped for too long drops its session whatever waited for it."""
        is_alive = self.check_lease()
        if is_alive:
            self._heard_at = time.monotonic()
        return is_alive

    @property
    def num_waiting(self) -> int:
        """Reports that gRPC has not taken yet."""
        return self._reports.qsize()

    def report(self, message: wire.AttachRequest) -> None:
        """Queue one report; never blocks."""
        if self._reports.qsize() >= REPORTS_MAX:
            self.fail(f"{REPORTS_MAX} reports wait, the router does not read")
            return
        self._reports.put(message)

    def fail(self, reason: str) -> None:
        """Break the stream off; the reader thread then ends the session."""
        if self._is_failed:
            return
        self._is_failed = True
        log.warning("stream to the router is broken off: %s", reason)
        if self._call is not None:
            self._call.cancel()  # type: ignore[no-untyped-call]

    def check_lease(self) -> bool:
        """Whether the router was heard in time; if not, the stream is broken off."""
        silent_s = time.monotonic() - self._heard_at
        if silent_s <= self._lease_s:
            return True
        self.fail(f"no word from the router for {silent_s:.1f} s, lease is over")
        return False

    def finish(self) -> bool:
        """Send what waits, then end our half. False: the router did not take it in time."""
        self._reports.put(None)
        return self._is_ended.wait(FINISH_S)

    def ended(self) -> None:
        """The reader thread is done with this stream."""
        self._is_ended.set()
        self._reports.put(None)

    def requests(self) -> Iterator[wire.AttachRequest]:
        """Runs in gRPC's sender thread: hello, then reports, and heartbeats where none come."""
        label = self._desk.label
        yield wire.hello(self._facts, label.role, label.epoch)
        while not self._is_ended.is_set():
            try:
                message = self._reports.get(timeout=self._interval_s)
            except queue.Empty:
                message = self._desk.heartbeat(self.id) if self.id else wire.AttachRequest()
            if message is None or not self.check_lease():
                return
            if self.id:
                silent_s = time.monotonic() - self._heard_at
                message.report.heard_ms = int(1000 * silent_s)
                yield message


class Attach:
    """Keeps the worker attached. `refusal` is set when the router will never take it."""

    def __init__(self, join: str, token: str, facts: WorkerFacts, desk: Desk) -> None:
        self.refusal: str | None = None
        self._join = join
        self._token = token
        self._facts = facts
        self._desk = desk
        self._closed = threading.Event()
        self._stream: Stream | None = None
        self._thread = threading.Thread(target=self._run, name="attach", daemon=True)

    def start(self) -> None:
        """Begin to dial."""
        self._thread.start()

    def close(self) -> None:
        """Send what waits, end the stream, dial no more."""
        self._closed.set()
        stream = self._stream
        if stream is not None and not stream.finish():
            stream.fail("worker ends")

    def _run(self) -> None:
        backoff_s = BACKOFF_MIN_S
        while not self._closed.is_set():
            try:
                if self._attach():
                    backoff_s = BACKOFF_MIN_S
            except _Refused as refused:
                self.refusal = str(refused)
                self._desk.stop()
                return
            except Exception:
                # Nobody foresaw it; a worker that is attached again serves, one that gave up never.
                log.exception("the stream to the router at %s failed", self._join)
            self._closed.wait(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)

    def _attach(self) -> bool:
        """One stream from its begin to its end. Returns whether there was a session."""
        stream = self._stream = Stream(self._desk, self._facts)
        # A channel of our own each time: gRPC's would wait a second and more between two tries.
        with grpc.insecure_channel(self._join, options=CHANNEL_OPTIONS) as channel:
            try:
                for message in stream.open(channel, self._token):
                    if not stream.heard():
                        break
                    self._take(stream, wire.response(message))
                log.info("router at %s ended the stream", self._join)
            except ProtocolError as error:
                stream.fail(str(error))
            except grpc.RpcError as error:
                self._explain(error)
            finally:
                stream.ended()
                if stream.id:
                    self._desk.post(Lost(stream))
        return bool(stream.id)

    def _take(self, stream: Stream, message: Welcome | Refusal | Commands) -> None:
        match message:
            case Welcome():
                if stream.id:
                    raise ProtocolError("second welcome on one stream")
                stream.welcome(message)
                checks = message.kv_check, message.kv_scrub
                wishes = message.prefix_cache, message.step_policy
                self._desk.post(Started(stream, *checks, *wishes))
                log.info("attached to router %s at %s", message.router, self._join)
            case Refusal(text, retry):
                if not retry:
                    raise _Refused(text)
                log.warning("router at %s does not take us in now: %s", self._join, text)
            case Commands(_, commands):
                if commands:
                    self._desk.post(message)

    def _explain(self, error: grpc.RpcError) -> None:
        code = error.code() if isinstance(error, grpc.Call) else None
        text = error.details() if isinstance(error, grpc.Call) else str(error)
        if code is not None and code in FATAL_CODES:
            raise _Refused(f"{code.name.lower()}: {text}") from error
        if not self._closed.is_set():
            log.warning("no stream to the router at %s: %s", self._join, text)


class _Refused(Exception):
    """The router will never take this worker."""
