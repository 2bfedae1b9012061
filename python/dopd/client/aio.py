"""`AsyncAnswerStream`, and the calls below `AsyncClient`: for programs with asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from types import TracebackType
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

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


# The stubs of grpc leave it out.
END: object = getattr(grpc.aio, "EOF")  # noqa: B009


class AsyncCall(Protocol):
    """A running gRPC stream."""

    async def read(self) -> Any:
        """The next message, or `grpc.aio.EOF`."""
        ...

    def cancel(self) -> bool:
        """End it, on the server as well."""
        ...

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback` when it has ended."""
        ...


class AsyncLink:
    """Connections, retries and deadlines of one client, all in one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.budget: RetryBudget = RetryBudget()
        self._pool: Pool[grpc.aio.Channel] = Pool(self._open)
        self._loop: asyncio.AbstractEventLoop | None = None

    def _open(self) -> grpc.aio.Channel:
        settings = self.settings
        if settings.credentials is None:
            return grpc.aio.insecure_channel(settings.endpoint, settings.options)
        return grpc.aio.secure_channel(settings.endpoint, settings.credentials, settings.options)

    async def call(self, method: Method[Q, R], request: Q, timeout_s: float | None) -> R:
        """Call a method that gives one answer."""
        attempts = Attempts(self.budget, self.settings.timeout(timeout_s))
        while True:
            try:
                return await self.once(method, request, attempts.remaining_s())
            except grpc.RpcError as error:
                failure = error
            told = self.settings.error_of(failure, attempts.timeout_s)
            await asyncio.sleep(attempts.delay_after(told, has_begun=False))

    async def health(self, timeout_s: float) -> HealthStatus:
        """Ask once, without retries."""
        try:
            return await self.once(CHECK_HEALTH, SERVICE, timeout_s)
        except grpc.RpcError as error:
            failure = error
        raise self.settings.error_of(failure, timeout_s)

    async def once(self, method: Method[Q, R], request: Q, timeout_s: float) -> R:
        """One attempt."""
        self._check_loop()
        lane = self._pool.take()
        try:
            run = lane.callable(method, "unary_unary")
            answer: R = await run(request, timeout=timeout_s, metadata=self.settings.metadata)
            return answer
        finally:
            self._pool.give(lane)

    def start(self, method: Method[Q, Any], request: Q, timeout_s: float) -> AsyncCall:
        """Begin one attempt at a stream."""
        self._check_loop()
        lane = self._pool.take()
        try:
            run = lane.callable(method, "unary_stream")
            call: AsyncCall = run(request, timeout=timeout_s, metadata=self.settings.metadata)
        except BaseException:
            self._pool.give(lane)
            raise
        call.add_done_callback(lambda _: self._pool.give(lane))
        return call

    async def close(self) -> None:
        """End all calls and connections."""
        for channel in self._pool.close():
            await channel.close(None)

    def _check_loop(self) -> None:
        """Connections belong to the loop that opened them; in another one calls would hang."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError(
                "this AsyncClient was used in another event loop: make one client per loop"
            )


class AsyncAnswerStream:
    """A streamed answer: events as they come.

    Use it in an `async with`, and iterate: over the stream for events, over `text_stream()` for
    text, or await `answer()` for everything at once. Leaving the `async with` before the end
    cancels the request on the server. The request is sent by `async with` or by the first event
    that is asked for; `timeout_s` counts from then. One task reads; any task of the loop may
    `close`.
    """

    def __init__(
        self,
        link: AsyncLink,
        method: Method[Q, Any],
        request: Q,
        options: pb.AnswerOptions,
        timeout_s: float | None,
    ) -> None:
        timeout_s = link.settings.timeout(timeout_s)
        self._call: AsyncCall | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start: Callable[[float], AsyncCall] = partial(link.start, method, request)
        self._make_track: Callable[[], Track] = lambda: Track(
            link.settings, Attempts(link.budget, timeout_s), options
        )
        self._track: Track | None = None

    @property
    def request_id(self) -> str | None:
        """The server's id of the request; None until its first event is here."""
        started = self._track.started if self._track else None
        return started.request_id if started else None

    async def __aenter__(self) -> AsyncAnswerStream:
        self._begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        track = self._begin()
        while not track.ready:
            if track.is_over:
                raise StopAsyncIteration
            await self._advance(track)
        return track.ready.popleft()

    async def text_stream(self, choice: int = 0) -> AsyncIterator[str]:
        """Text of one choice, piece by piece."""
        async for event in self:
            if isinstance(event, Delta) and event.choice == choice and event.text:
                yield event.text

    async def answer(self) -> Answer:
        """Read to the end; the whole answer, with what was read before."""
        async for _ in self:
            pass
        return self._begin().answer()

    async def close(self) -> None:
        """Cancel the request unless it is complete. Closing again does nothing."""
        if self._track is None:
            self._track = self._make_track()
        self._track.close()
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def __del__(self) -> None:
        call: AsyncCall | None = getattr(self, "_call", None)
        if call is None or self._loop is None:
            return
        # The collector may run in any thread, and after the loop: then its calls are gone.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call.cancel)

    def _begin(self) -> Track:
        """Send the request unless that is done."""
        if self._track is None:
            self._track = self._make_track()
            self._loop = asyncio.get_running_loop()
            self._call = self._start(self._track.attempts.remaining_s())
        return self._track

    async def _advance(self, track: Track) -> None:
        """Receive one message, or begin the next attempt."""
        if track.error is not None:
            raise track.error
        call = self._call
        if call is None:
            call = self._call = self._start(track.attempts.remaining_s())
        try:
            message = await call.read()
        except grpc.RpcError as error:
            failure = error
        except asyncio.CancelledError:
            # grpc says so too when another task closed the stream; then this task goes on.
            task = asyncio.current_task()
            if track.error is None or (task is not None and task.cancelling()):
                raise
            raise track.error from None
        else:
            if message is END:
                self._call = None
                track.end()
            else:
                await self._receive(track, message)
            return
        self._call = None
        if track.error is None:
            await asyncio.sleep(track.fail(failure))

    async def _receive(self, track: Track, message: Any) -> None:
        try:
            track.receive(message)
        except RequestError:
            await self.close()
            raise
