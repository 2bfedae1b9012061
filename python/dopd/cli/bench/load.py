"""The load itself: sends each request when it is due and notes when its answer came.

One thread, one event loop, one protocol object per connection; connections are kept and reused.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

from dopd.cli import console, http
from dopd.cli.bench.arrivals import Arrival
from dopd.cli.bench.progress import Progress
from dopd.cli.bench.prompts import Prompts
from dopd.cli.bench.stream import ProtocolError, Response, State

PATH = "/v1/completions"
WARMUP_TIMEOUT_S = 120.0


@dataclass(slots=True)
class Sample:
    """What became of one request. Times are seconds on one clock; None: it did not get so far."""

    arrival: Arrival
    due_s: float
    sent_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None
    gap_max_s: float = 0.0
    tokens: int | None = None
    error: str | None = None
    # The answer came to its end; neither this nor an error: Ctrl-C came first.
    is_complete: bool = False


@dataclass(slots=True)
class Result:
    """All samples of a run, and when it began and ended."""

    samples: list[Sample] = field(default_factory=list)
    start_s: float = 0.0
    end_s: float = 0.0
    cpu_s: float = 0.0


class Connection(asyncio.Protocol):
    """One connection; carries one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._response = Response()
        self._sample: Sample | None = None
        self._done: asyncio.Future[None] | None = None
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self.is_open = False
        self._finish(f"connection lost: {exc}" if exc else "connection closed by the server")

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        sample = self._sample
        if sample is None:
            return
        try:
            events = self._response.feed(data)
        except (ProtocolError, ValueError) as error:
            self._finish(str(error))
            self.close()
            return
        if events:
            now = time.perf_counter()
            if sample.first_s is None:
                sample.first_s = now
            elif sample.last_s is not None:
                sample.gap_max_s = max(sample.gap_max_s, now - sample.last_s)
            sample.last_s = now
        if self._response.state is State.DONE:
            self._complete(sample)

    def _complete(self, sample: Sample) -> None:
        response = self._response
        sample.tokens = response.completion_tokens()
        if response.status != 200:
            text = http.error_message(bytes(response.body))
            self._finish(f"status {response.status}: {text}")
        elif not response.is_done_seen:
            self._finish(f"the stream ended early: {response.error()}")
        else:
            self._finish(None)
        if not response.can_reuse:
            self.close()

    def _finish(self, error: str | None) -> None:
        if self._sample is not None:
            self._sample.error = error
            self._sample.is_complete = error is None
        self._sample = None
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    async def request(self, sample: Sample, payload: bytes) -> None:
        """Send `payload` and return when the answer is complete or has failed."""
        assert self._transport is not None
        self._response = Response()
        self._sample = sample
        self._done = asyncio.get_running_loop().create_future()
        sample.sent_s = time.perf_counter()
        self._transport.write(payload)
        await self._done

    def close(self) -> None:
        """Drop the connection; its request, if there is one, has its error already."""
        self.is_open = False
        self._sample = None
        if self._transport is not None:
            self._transport.abort()


class Client:
    """Sends requests over a pool of connections, at most `concurrency_max` at once."""

    def __init__(self, url: str, concurrency_max: int, timeout_s: float) -> None:
        parts = http.parse_url(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._head = (
            f"POST {PATH} HTTP/1.1\r\nhost: {parts.netloc}\r\n"
            "content-type: application/json\r\ncontent-length: "
        ).encode()
        self._idle: collections.deque[Connection] = collections.deque()
        self._places = asyncio.Semaphore(concurrency_max)
        self._timeout_s = timeout_s

    async def send(self, sample: Sample, body: bytes) -> None:
        """One request from its due moment to its end; failures are noted in the sample."""
        payload = self._head + str(len(body)).encode() + b"\r\n\r\n" + body
        async with self._places:
            connection: Connection | None = None
            try:
                async with asyncio.timeout(self._timeout_s):
                    connection = await self._connection()
                    await connection.request(sample, payload)
            except TimeoutError:
                sample.error = f"no answer within {self._timeout_s:g} s"
                if connection is not None:
                    connection.close()
            except asyncio.CancelledError:
                if connection is not None:
                    connection.close()
                raise
            except OSError as error:
                sample.error = f"cannot connect: {error.strerror or error}"
            if connection is not None and connection.is_open:
                self._idle.append(connection)

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port)
        return connection

    def close(self) -> None:
        """Drop all idle connections."""
        while self._idle:
            self._idle.pop().close()


def run(args: argparse.Namespace, plan: list[Arrival]) -> Result:
    """Run the whole plan; Ctrl-C ends it early and what was measured so far is kept."""
    args.model = args.model or http.Server(args.url).served_model()
    result = Result()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(args, plan, result))
    if not any(sample.sent_s for sample in result.samples):
        raise console.CommandError("interrupted before the first request", code=console.INTERRUPTED)
    return result


async def _run(args: argparse.Namespace, plan: list[Arrival], result: Result) -> None:
    client = Client(args.url, args.concurrency_max, args.timeout)
    prompts = Prompts(args.model, args.seed, max(arrival.prompt_tokens for arrival in plan))
    await _warm_up(client, prompts, plan[0], args.warmup)
    result.start_s = time.perf_counter()
    cpu_s = time.process_time()
    try:
        with Progress(len(plan), result.samples) as progress:
            await _send_all(client, prompts, plan, result, progress)
    finally:
        result.end_s = time.perf_counter()
        result.cpu_s = time.process_time() - cpu_s
        client.close()


async def _warm_up(client: Client, prompts: Prompts, like: Arrival, requests: int) -> None:
    """Requests one after the other, not counted; the first failure ends the run."""
    for index in range(requests):
        sample = Sample(like, time.perf_counter())
        body = prompts.body(index, like.prompt_tokens, like.output_tokens)
        try:
            async with asyncio.timeout(WARMUP_TIMEOUT_S):
                await client.send(sample, body)
        except TimeoutError:
            sample.error = f"no answer within {WARMUP_TIMEOUT_S:g} s"
        if sample.error:
            raise console.CommandError(f"the first request failed: {sample.error}")


async def _send_all(
    client: Client,
    prompts: Prompts,
    plan: list[Arrival],
    result: Result,
    progress: Progress,
) -> None:
    async with asyncio.TaskGroup() as group:
        watcher = group.create_task(progress.watch())
        tasks: set[asyncio.Task[Any]] = set()
        for index, arrival in enumerate(plan):
            sample = Sample(arrival, result.start_s + arrival.at_s)
            body = prompts.body(index, arrival.prompt_tokens, arrival.output_tokens)
            if (wait_s := sample.due_s - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            elif index % 16 == 0:
                # Behind: let answers in even so.
                await asyncio.sleep(0)
            result.samples.append(sample)
            task = group.create_task(client.send(sample, body))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        while tasks:
            await asyncio.wait(tasks)
        watcher.cancel()
