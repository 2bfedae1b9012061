"""The load itself: sends each request when it is due and notes when its answer came.

One thread, one event loop, one protocol object per connection; connections are kept and reused.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import math
import ssl
import time
from array import array
from dataclasses import dataclass, field
from typing import Any

from dopd.cli import console, http
from dopd.cli.bench.arrivals import Arrival
from dopd.cli.bench.progress import Progress
from dopd.cli.bench.prompts import Form, Prompts
from dopd.cli.bench.stream import ProtocolError, Response, State

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
WARMUP_TIMEOUT_S = 120.0


@dataclass(slots=True)
class Sample:
    """What became of one request. Times are seconds on one clock; None: it did not get so far."""

    arrival: Arrival
    due_s: float
    sent_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None
    # Seconds between two pieces of text.
    gaps_s: array[float] = field(default_factory=lambda: array("f"))
    tokens: int | None = None
    prompt_tokens: int | None = None
    error: str | None = None
    # The HTTP status, or `timeout`, `connect`, `closed`, `protocol`, `stream`.
    error_code: str | None = None
    # The answer came to its end; neither this nor an error: Ctrl-C came first.
    is_complete: bool = False


@dataclass(slots=True)
class Result:
    """All samples of a run, and when it began and ended."""

    samples: list[Sample] = field(default_factory=list)
    start_s: float = 0.0
    end_s: float = 0.0
    cpu_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Target:
    """A server under load, the model to ask for, and its name in reports."""

    server: http.Server
    model: str
    label: str

    @classmethod
    def of(cls, server: http.Server, model: str | None) -> Target:
        """The server, asked for its model if there is none. Raises CommandError."""
        label = http.parse_url(server.url).netloc
        return cls(server, model or server.served_model(), label)


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
        lost = f"connection lost: {exc}" if exc else "connection closed by the server"
        self._finish("closed", lost)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        sample = self._sample
        if sample is None:
            return
        try:
            events = self._response.feed(data)
        except (ProtocolError, ValueError) as error:
            self._finish("protocol", str(error))
            self.close()
            return
        if events:
            now = time.perf_counter()
            if sample.first_s is None:
                sample.first_s = now
            elif sample.last_s is not None:
                sample.gaps_s.append(now - sample.last_s)
            sample.last_s = now
        if self._response.state is State.DONE:
            self._complete(sample)

    def _complete(self, sample: Sample) -> None:
        response = self._response
        sample.tokens = response.completion_tokens()
        sample.prompt_tokens = response.prompt_tokens()
        if response.status != 200:
            text = http.error_message(bytes(response.body))
            self._finish(str(response.status), f"status {response.status}: {text}")
        elif not response.is_done_seen:
            self._finish("stream", f"the stream ended early: {response.error()}")
        else:
            self._finish(None, None)
        if not response.can_reuse:
            self.close()

    def _finish(self, code: str | None, error: str | None) -> None:
        if self._sample is not None:
            self._sample.error_code, self._sample.error = code, error
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
    """Sends requests over a pool of connections, at most `args.concurrency` at once."""

    def __init__(self, server: http.Server, args: argparse.Namespace) -> None:
        parts = http.parse_url(server.url)
        self._host, self._port = parts.hostname or "", parts.port or http.PORTS[parts.scheme]
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        headers = server.headers() | {"host": parts.netloc, "content-type": "application/json"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        path = server.path(CHAT if args.chat else COMPLETIONS)
        self._head = f"POST {path} HTTP/1.1\r\n{lines}content-length: ".encode()
        self._idle: collections.deque[Connection] = collections.deque()
        self._places = asyncio.Semaphore(args.concurrency)
        self._timeout_s: float = args.timeout
        self._is_closed_loop = args.rate == math.inf

    async def send(self, sample: Sample, body: bytes) -> None:
        """One request from its due moment to its end; failures are noted in the sample."""
        payload = self._head + str(len(body)).encode() + b"\r\n\r\n" + body
        async with self._places:
            if self._is_closed_loop:
                # Requests are due when there is a place for them.
                sample.due_s = time.perf_counter()
            connection: Connection | None = None
            try:
                async with asyncio.timeout(self._timeout_s):
                    connection = await self._connection()
                    await connection.request(sample, payload)
            except TimeoutError:
                sample.error_code = "timeout"
                sample.error = f"no answer within {self._timeout_s:g} s"
                if connection is not None:
                    connection.close()
            except asyncio.CancelledError:
                if connection is not None:
                    connection.close()
                raise
            except OSError as error:
                sample.error_code = "connect"
                sample.error = f"cannot connect: {error.strerror or error}"
            if connection is not None and connection.is_open:
                self._idle.append(connection)

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            Connection, self._host, self._port, ssl=self._tls
        )
        return connection

    def close(self) -> None:
        """Drop all idle connections."""
        while self._idle:
            self._idle.pop().close()


def run(args: argparse.Namespace, target: Target, plan: list[Arrival]) -> Result:
    """Run the whole plan; Ctrl-C ends it early and what was measured so far is kept."""
    return run_rounds(args, [target], [(0, plan)])[target.label][0]


def run_rounds(
    args: argparse.Namespace, targets: list[Target], turns: list[tuple[int, list[Arrival]]]
) -> dict[str, list[Result]]:
    """Run each turn (index of its target, its plan) after the other; results by target.

    Ctrl-C ends it early and what was measured so far is kept.
    """
    results: dict[str, list[Result]] = {target.label: [] for target in targets}
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(args, targets, turns, results))
    if not any(sample.sent_s for found in results.values() for r in found for sample in r.samples):
        raise console.CommandError("interrupted before the first request", code=console.INTERRUPTED)
    return results


async def _run(
    args: argparse.Namespace,
    targets: list[Target],
    turns: list[tuple[int, list[Arrival]]],
    results: dict[str, list[Result]],
) -> None:
    tokens_max = max(arrival.prompt_tokens for _, plan in turns for arrival in plan)
    form = Form(is_chat=args.chat, extra=args.extra_body)
    clients = [Client(target.server, args) for target in targets]
    # Each target has its own stream of prompts, the same for the same seed.
    prompts = [Prompts(target.model, args.seed, tokens_max, form) for target in targets]
    for client, bodies, target in zip(clients, prompts, targets, strict=True):
        await _warm_up(client, bodies, turns[0][1][0], args.warmup, target)
    total = sum(len(plan) for _, plan in turns)
    sent: list[Sample] = []
    try:
        with Progress(total, sent) as progress:
            for index, plan in turns:
                result = Result()
                results[targets[index].label].append(result)
                await _turn(clients[index], prompts[index], plan, result, progress, sent)
    finally:
        for client in clients:
            client.close()


async def _turn(
    client: Client,
    prompts: Prompts,
    plan: list[Arrival],
    result: Result,
    progress: Progress,
    sent: list[Sample],
) -> None:
    """One plan on one target, from its first request to its last answer."""
    result.start_s = time.perf_counter()
    cpu_s = time.process_time()
    try:
        await _send_all(client, prompts, plan, result, progress, sent)
    finally:
        result.end_s = time.perf_counter()
        result.cpu_s = time.process_time() - cpu_s


async def _warm_up(
    client: Client, prompts: Prompts, like: Arrival, requests: int, target: Target
) -> None:
    """Requests one after the other, not counted; the first failure ends the run."""
    for index in range(requests):
        sample = Sample(like, time.perf_counter())
        try:
            async with asyncio.timeout(WARMUP_TIMEOUT_S):
                await client.send(sample, prompts.body(index, like))
        except TimeoutError:
            sample.error = f"no answer within {WARMUP_TIMEOUT_S:g} s"
        if sample.error:
            message = f"the first request to {target.label} failed: {sample.error}"
            raise console.CommandError(message)


async def _send_all(
    client: Client,
    prompts: Prompts,
    plan: list[Arrival],
    result: Result,
    progress: Progress,
    sent: list[Sample],
) -> None:
    async with asyncio.TaskGroup() as group:
        watcher = group.create_task(progress.watch())
        tasks: set[asyncio.Task[Any]] = set()
        for index, arrival in enumerate(plan):
            sample = Sample(arrival, result.start_s + arrival.at_s)
            body = prompts.body(index, arrival)
            if (wait_s := sample.due_s - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            elif index % 16 == 0:
                # Behind: let answers in even so.
                await asyncio.sleep(0)
            result.samples.append(sample)
            sent.append(sample)
            task = group.create_task(client.send(sample, body))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        while tasks:
            await asyncio.wait(tasks)
        watcher.cancel()
