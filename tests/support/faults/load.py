"""Many requests at once from one thread, each answer checked against the mock model.

Streams over HTTP/1.1 by asyncio. `ask` is one request to its end; `Crowd` keeps its connections.
Used by the fault rows and by the benches.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tests.support import mock_model

# Longest wait for the next piece of an answer: nothing may hang.
PIECE_TIMEOUT_S = 60.0
# Connections that wait for their next request.
IDLE_MAX = 1024

OK, REFUSED, FAILED, WRONG, BROKEN, LEFT = "ok refused failed wrong broken left".split()


@dataclass(frozen=True)
class Ask:
    """One request: a prompt of so many tokens by its seed, and the length of its answer."""

    seed: int
    prompt_tokens: int = 48
    max_tokens: int = 32
    leaves_after: int | None = None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def prompt(self) -> list[int]:
        """Different for every seed; byte tokens."""
        source = random.Random(self.seed)
        return [source.randrange(32, 127) for _ in range(self.prompt_tokens)]

    def expected(self) -> str:
        """The answer as text."""
        return _expected(self.seed, self.prompt_tokens, self.max_tokens)

    def body(self) -> bytes:
        """The request."""
        fields = {"model": "mock", "prompt": self.prompt, "max_tokens": self.max_tokens}
        fields |= {"temperature": 0, "ignore_eos": True, "stream": True}
        return json.dumps(fields | {"stream_options": {"include_usage": True}}).encode()


@lru_cache(maxsize=200_000)
def _expected(seed: int, prompt_tokens: int, max_tokens: int) -> str:
    prompt = Ask(seed, prompt_tokens).prompt
    return mock_model.text(mock_model.answer(prompt, max_tokens, ignore_eos=True))


@dataclass(slots=True)
class Outcome:
    """What one client saw; times are of the monotonic clock.

    why: one of the words above. code: the error's code, or the exception's name.
    longest_gap_s: between two pieces of the answer.
    """

    ask: Ask
    why: str = BROKEN
    status: int = 0
    code: str = ""
    text: str = ""
    retry_after_ms: int | None = None
    begun: float = 0.0
    first: float | None = None
    ended: float = 0.0
    longest_gap_s: float = 0.0
    completion_tokens: int = -1
    pieces: int = 0

    @property
    def seconds(self) -> float:
        """From the call to its end."""
        return self.ended - self.begun

    def judge(self, is_whole: bool) -> None:
        """Whether the answer is the model's; a part of it must be right, too."""
        expected = self.ask.expected()
        if not expected.startswith(self.text) or (is_whole and self.text != expected):
            self.why = WRONG
        elif is_whole and self.completion_tokens not in (-1, self.ask.max_tokens):
            self.why, self.code = WRONG, f"usage {self.completion_tokens}"
        elif is_whole:
            self.why = OK


class Crowd:
    """Clients of one server; `seen` has how every request ended."""

    def __init__(self, address: str) -> None:
        self.host, port = address.rsplit(":", 1)
        self.port = int(port)
        self.seen: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.on_piece: Callable[[Outcome], None] | None = None
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, ask: Ask) -> Outcome:
        """One request to its end; never raises for what the server or the network does."""
        outcome = Outcome(ask, begun=time.monotonic())
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await self._connection()
            async with asyncio.timeout(ask_timeout_s(ask)):
                is_reusable = await self._talk(reader, writer, outcome)
            if is_reusable and len(self._idle) < IDLE_MAX:
                self._idle.append((reader, writer))
                writer = None
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            outcome.code = f"{type(error).__name__}: {error}"
            outcome.judge(is_whole=False)
        finally:
            if writer is not None:
                await hang_up(writer)
        outcome.ended = time.monotonic()
        self.seen[outcome.why] += 1
        if outcome.why not in (OK, LEFT):
            self.examples.setdefault(f"{outcome.why} {outcome.status}", outcome.code)
        return outcome

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            await hang_up(writer)
        return await asyncio.open_connection(self.host, self.port)

    async def _talk(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, outcome: Outcome
    ) -> bool:
        """Send, read to the end; whether the connection takes another request."""
        body = outcome.ask.body()
        extra = "".join(f"{name}: {value}\r\n" for name, value in outcome.ask.headers)
        head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}{extra}content-length: {len(body)}\r\n\r\n".encode() + body)
        status, headers = await read_head(reader)
        outcome.status = status
        if "content-length" in headers:
            whole = await reader.readexactly(int(headers["content-length"]))
            _refused(outcome, headers, whole)
            return headers.get("connection") != "close"
        is_whole = False
        async for event in read_events(reader):
            if event == "[DONE]":
                is_whole = True
                continue
            self._event(outcome, json.loads(event))
            leaves = outcome.ask.leaves_after
            if leaves is not None and outcome.pieces >= leaves:
                outcome.judge(is_whole=False)
                outcome.why = LEFT if outcome.why == BROKEN else outcome.why
                return False
        if outcome.why != FAILED:
            outcome.judge(is_whole)
        return outcome.why == OK and headers.get("connection") != "close"

    def _event(self, outcome: Outcome, event: dict[str, Any]) -> None:
        now = time.monotonic()
        if "error" in event:
            outcome.judge(is_whole=False)
            if outcome.why != WRONG:
                outcome.why, outcome.code = FAILED, str(event["error"].get("code"))
            return
        if usage := event.get("usage"):
            outcome.completion_tokens = usage["completion_tokens"]
        for choice in event["choices"]:
            outcome.text += choice["text"]
        if outcome.first is None:
            outcome.first = now
        else:
            outcome.longest_gap_s = max(outcome.longest_gap_s, now - outcome.ended)
        outcome.ended = now
        outcome.pieces += 1
        if self.on_piece is not None:
            self.on_piece(outcome)

    async def all(self, asks: Iterable[Ask], *, at_once: int | None = None) -> list[Outcome]:
        """Every request; `at_once` of them at a time."""
        gate = asyncio.Semaphore(at_once) if at_once else contextlib.nullcontext()

        async def one(ask: Ask) -> Outcome:
            async with gate:
                return await self.ask(ask)

        return await asyncio.gather(*(one(ask) for ask in asks))

    async def close(self) -> None:
        """Give the connections up."""
        while self._idle:
            await hang_up(self._idle.pop()[1])


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a connection at once, and see it closed."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def ask_timeout_s(ask: Ask) -> float:
    """The longest that an answer may take; a hang is a failure, not the end of the run."""
    return PIECE_TIMEOUT_S + ask.max_tokens * 0.1


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    raw = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {}
    for line in raw[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(raw[0].split()[1]), headers


def _refused(outcome: Outcome, headers: dict[str, str], whole: bytes) -> None:
    """An answer in one piece is an error: streams are chunked."""
    outcome.why = REFUSED if outcome.status in (429, 503) else FAILED
    with contextlib.suppress(ValueError, KeyError, TypeError):
        outcome.code = str(json.loads(whole)["error"]["code"])
    if (after := headers.get("retry-after-ms")) is not None:
        outcome.retry_after_ms = int(after)


async def read_events(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """The data of each event of a chunked body."""
    rest = b""
    while size := int(await reader.readline() or b"x", 16):
        rest += await reader.readexactly(size)
        await reader.readexactly(2)
        *whole, rest = rest.split(b"\n\n")
        for event in whole:
            if event.startswith(b"data: "):
                yield event[len(b"data: ") :].decode()
    await reader.readexactly(2)


@dataclass
class OpenLoop:
    """Requests at their own times, however long others take."""

    rate_per_s: float
    seconds: float
    make: Callable[[int], Ask]
    seed: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    # How late the latest request was sent: the generator's own lag.
    lag_s: float = 0.0

    async def run(self, crowd: Crowd) -> list[Outcome]:
        """All requests to their ends; latency counts from when each was due."""
        source = random.Random(self.seed)
        begun = time.monotonic()
        due, tasks, number = begun, [], 0
        while (due := due + source.expovariate(self.rate_per_s)) < begun + self.seconds:
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            self.lag_s = max(self.lag_s, time.monotonic() - due)
            tasks.append(asyncio.create_task(self._one(crowd, self.make(number), due)))
            number += 1
        self.outcomes = list(await asyncio.gather(*tasks))
        return self.outcomes

    async def _one(self, crowd: Crowd, ask: Ask, due: float) -> Outcome:
        outcome = await crowd.ask(ask)
        outcome.begun = due
        return outcome


async def closed_loop(
    crowd: Crowd,
    make: Callable[[int], Ask],
    *,
    clients: int,
    requests: int,
    after_each: Callable[[Outcome], Awaitable[None] | None] | None = None,
) -> int:
    """`clients` that ask one after the other until so many were asked; how many were."""
    numbers = iter(range(requests))

    async def client() -> None:
        for number in numbers:
            outcome = await crowd.ask(make(number))
            if after_each is not None and (later := after_each(outcome)) is not None:
                await later

    await asyncio.gather(*(client() for _ in range(clients)))
    return requests


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed; 0 without any."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
