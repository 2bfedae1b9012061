"""`AnswerStream`, and the calls below `Client`: for programs with threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Protocol, TypeVar

import grpc

from dopd._gen.dopd.v1 import inference_pb2 as pb
from dopd.client.errors import RequestError
from dopd.client.methods import CHECK_HEALTH, SERVICE, Method
from dopd.client.pool import Pool
from dopd.client.results import Answer, Delta, Event, HealthStatus
from dopd.client.retry import Attempts, RetryBudget
from dopd.client.settings import Settings
from dopd.client.track import Track

Q = TypeVar("Q")
R = TypeVar("R")


class Call(Protocol):
    """A running gRPC stream."""

    def __next__(self) -> Any:
        """The next message."""
        ...

    def cancel(self) -> object:
        """End it, on the server as well."""
        ...


class Link:
    """Connections, retries and deadlines of one client. Any thread may call it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.budget: RetryBudget = RetryBudget()
        self._pool: Pool[grpc.Channel] = Pool(self._open)

    def _open(self) -> grpc.Channel:
        settings = self.settings
        if settings.credentials is None:
            return grpc.insecure_channel(settings.endpoint, settings.options)
        return grpc.secure_channel(settings.endpoint, settings.credentials, settings.options)

    def call(self, method: Method[Q, R], request: Q, timeout_s: float | None) -> R:
        """Call a method that gives one answer."""
        attempts = Attempts(self.budget, self.settings.timeout(timeout_s))
        while True:
            try:
                return self.once(method, request, attempts.remaining_s())
            except grpc.RpcError as error:
                failure = error
            told = self.settings.error_of(failure, attempts.timeout_s)
            time.sleep(attempts.delay_after(told, has_begun=False))

    def health(self, timeout_s: float) -> HealthStatus:
        """Ask once, without retries."""
        try:
            return self.once(CHECK_HEALTH, SERVICE, timeout_s)
        except grpc.RpcError as error:
            failure = error
        raise self.settings.error_of(failure, timeout_s)

    def once(self, method: Method[Q, R], request: Q, timeout_s: float) -> R:
        """One attempt."""
        lane = self._pool.take()
        try:
            run = lane.callable(method, "unary_unary")
            answer: R = run(request, timeout=timeout_s, metadata=self.settings.metadata)
            return answer
        finally:
            self._pool.give(lane)

    def start(self, method: Method[Q, Any], request: Q, timeout_s: float) -> Call:
        """Begin one attempt at a stream."""
        lane = self._pool.take()
        give = partial(self._pool.give, lane)
        try:
            run = lane.callable(method, "unary_stream")
            call = run(request, timeout=timeout_s, metadata=self.settings.metadata)
            is_running = call.add_callback(give)
        except BaseException:
            give()
            raise
        if not is_running:
            give()
        found: Call = call
        return found

    def close(self) -> None:
        """End all calls and connections."""
        for channel in self._pool.close():
            channel.close()


class AnswerStream:
    """A streamed answer: events as they come.

    Use it in a `with`, and iterate: over the stream for events, over `text_stream()` for text, or
    call `answer()` for everything at once. Leaving the `with` before the end cancels the request on
    the server. The request is sent by `with` or by the first event that is asked for; `timeout_s`
    counts from then. One thread reads; any thread may `close`.
    """

    def __init__(
        self,
        link: Link,
        method: Method[Q, Any],
        request: Q,
        options: pb.AnswerOptions,
        timeout_s: float | None,
    ) -> None:
        timeout_s = link.settings.timeout(timeout_s)
        self._call: Call | None = None
        self._start: Callable[[float], Call] = partial(link.start, method, request)
        self._make_track: Callable[[], Track] = lambda: Track(
            link.settings, Attempts(link.budget, timeout_s), options
        )
        self._track: Track | None = None

    @property
    def request_id(self) -> str | None:
        """The server's id of the request; None until its first event is here."""
        started = self._track.started if self._track else None
        return started.request_id if started else None

    def __enter__(self) -> AnswerStream:
        self._begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        track = self._begin()
        while not track.ready:
            if track.is_over:
                raise StopIteration
            self._advance(track)
        return track.ready.popleft()

    def text_stream(self, choice: int = 0) -> Iterator[str]:
        """Text of one choice, piece by piece."""
        for event in self:
            if isinstance(event, Delta) and event.choice == choice and event.text:
                yield event.text

    def answer(self) -> Answer:
        """Read to the end; the whole answer, with what was read before."""
        for _ in self:
            pass
        return self._begin().answer()

    def close(self) -> None:
        """Cancel the request unless it is complete. Closing again does nothing."""
        if self._track is None:
            self._track = self._make_track()
        self._track.close()
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def __del__(self) -> None:
        call: Call | None = getattr(self, "_call", None)
        if call is not None:
            call.cancel()

    def _begin(self) -> Track:
        """Send the request unless that is done."""
        if self._track is None:
            self._track = self._make_track()
            self._call = self._start(self._track.attempts.remaining_s())
        return self._track

    def _advance(self, track: Track) -> None:
        """Receive one message, or begin the next attempt."""
        if track.error is not None:
            raise track.error
        call = self._call
        if call is None:
            call = self._call = self._start(track.attempts.remaining_s())
        if track.error is not None:
            # Closed by another thread meanwhile.
            call.cancel()
            raise track.error
        try:
            message = next(call, None)
        except grpc.RpcError as error:
            failure = error
        else:
            if message is None:
                self._call = None
                track.end()
            else:
                self._receive(track, message)
            return
        self._call = None
        if track.error is None:
            time.sleep(track.fail(failure))

    def _receive(self, track: Track, message: Any) -> None:
        try:
            track.receive(message)
        except RequestError:
            self.close()
            raise
