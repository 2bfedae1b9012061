"""One streamed request over its attempts, without sockets and waits.

`AnswerStream` and `AsyncAnswerStream` move messages in and events out.
"""

from __future__ import annotations

from collections import deque

import grpc

from dopd._gen.dopd.v1 import inference_pb2 as pb
from dopd.client.errors import RequestCancelledError, RequestError
from dopd.client.events import Collector, EventReader
from dopd.client.results import Answer, Event, Started
from dopd.client.retry import Attempts
from dopd.client.settings import Settings


class Track:
    """What has come of one request, and whether it may be sent again.

    ready: events that the caller has not taken yet.
    error: why there will be no more events, if that is a failure.
    is_over: all events have come.
    """

    def __init__(self, settings: Settings, attempts: Attempts, options: pb.AnswerOptions) -> None:
        self._settings = settings
        self._choices = options.n if options.HasField("n") else 1
        self._reader = EventReader(self._choices)
        self._collector = Collector(has_logprobs=options.HasField("top_logprobs"))
        self._has_begun = False
        self.attempts = attempts
        self.ready: deque[Event] = deque()
        self.error: RequestError | None = None
        self.is_over: bool = False

    @property
    def started(self) -> Started | None:
        """What the server said when it accepted the request."""
        return self._reader.started

    def receive(self, message: pb.GenerateResponse | pb.ChatResponse) -> None:
        """One message of the stream."""
        try:
            event = self._reader.read(message)
        except RequestError as error:
            raise self._fail(error) from None
        # `Started` waits for what follows it: until then the request may still begin anew.
        if event is None or isinstance(event, Started):
            return
        if not self._has_begun and self.started is not None:
            self._give(self.started)
        self._give(event)

    def end(self) -> None:
        """The stream ended well."""
        try:
            self._reader.end()
        except RequestError as error:
            raise self._fail(error) from None
        self.is_over = True

    def fail(self, failure: grpc.RpcError) -> float:
        """The call failed: seconds until the next attempt; raises if there is none."""
        if self._reader.is_done:
            # Only the status was missing.
            self.is_over = True
            return 0.0
        request_id = self.started.request_id if self.started else None
        error = self._settings.error_of(failure, self.attempts.timeout_s, request_id)
        try:
            delay_s = self.attempts.delay_after(error, has_begun=self._has_begun)
        except RequestError:
            raise self._fail(error) from None
        self._reader = EventReader(self._choices)
        return delay_s

    def close(self) -> None:
        """The caller wants no more."""
        if self._reader.is_done:
            self.is_over = True
        elif self.error is None:
            request_id = self.started.request_id if self.started else None
            self.error = RequestCancelledError(
                "the stream was closed before its end", reason="cancelled", request_id=request_id
            )

    def answer(self) -> Answer:
        """The whole answer, once it is over."""
        return self._collector.answer()

    def _give(self, event: Event) -> None:
        self._has_begun = True
        self._collector.add(event)
        self.ready.append(event)

    def _fail(self, error: RequestError) -> RequestError:
        self.error = error
        return error
