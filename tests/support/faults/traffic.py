"""Traffic in the background of a fault, over both fronts, every answer checked token by token.

`Traffic` asks from a thread of its own, streamed, over HTTP and gRPC by turns, greedy and drawn,
without any retry of a client, and judges each answer: right, a clear error (a status and a code),
or wrong. Wrong is what a client cannot know to be wrong: a foreign, lost or doubled token, an end
without reason, false usage, no end at all. For crowds and rates there is `load`.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from dopd._gen.dopd.v1 import inference_pb2, inference_pb2_grpc, types_pb2
from tests.support import mock_model
from tests.support.faults.load import read_events, read_head

CHANNEL_OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", 100),
)
# A client's patience: no request of a fault test is meant to take so long. Beyond it is a hang.
HANG_S = 30.0
# After an error a client that is not paced would ask a dead server a thousand times a second.
AFTER_ERROR_S = 0.05
FINISH = {types_pb2.FINISH_REASON_LENGTH: "length", types_pb2.FINISH_REASON_STOP: "stop"}


class Verdict(enum.Enum):
    """What an answer is worth to its client."""

    RIGHT = "right"
    ERROR = "error"
    WRONG = "wrong"
    LEFT = "left"  # the client itself went away


@dataclass(frozen=True)
class Ask:
    """One request. leave_after: the client goes away after so many tokens; None: it stays."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    ignore_eos: bool = True
    leave_after: int | None = None

    @cached_property
    def tokens(self) -> list[int]:
        """The only right answer."""
        return mock_model.answer(
            self.prompt,
            self.max_tokens,
            temperature=self.temperature,
            seed=self.seed,
            ignore_eos=self.ignore_eos,
        )

    @property
    def finish_reason(self) -> str:
        """How the right answer ends."""
        ended = not self.ignore_eos and self.tokens[-1] == mock_model.IM_END
        return "stop" if ended else "length"


def asks(seed: int, prompt_max: int = 200, tokens_max: int = 60) -> Iterator[Ask]:
    """Requests of all lengths, greedy and drawn, each with a prompt of its own."""
    rng = random.Random(seed)
    while True:
        length = rng.choice((1, 15, 16, 17, 33, rng.randint(1, prompt_max)))
        yield Ask(
            prompt=tuple(rng.randrange(256) for _ in range(length)),
            max_tokens=rng.randint(1, tokens_max),
            temperature=rng.choice((0.0, 1.0)),
            seed=rng.randrange(1 << 32),
            ignore_eos=rng.random() < 0.7,
        )


@dataclass
class Outcome:
    """What one client saw. `token_s`: when text came; times are monotonic."""

    ask: Ask
    protocol: str
    verdict: Verdict = Verdict.WRONG
    # HTTP status or gRPC status name, and the stable code; of errors.
    status: str = ""
    code: str = ""
    detail: str = ""
    text: str = ""
    begun_s: float = field(default_factory=time.monotonic)
    ended_s: float = 0.0
    token_s: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    usage: tuple[int, int] | None = None

    @property
    def stall_s(self) -> float:
        """The longest that the client waited for something to come."""
        marks = [self.begun_s, *self.token_s, self.ended_s]
        return max(b - a for a, b in itertools.pairwise(marks))

    def got(self, text: str) -> None:
        """A piece of the answer."""
        if text:
            self.text += text
            self.token_s.append(time.monotonic())

    def failed(self, status: str, code: str, detail: str) -> None:
        """The server, or the connection, said no."""
        self.verdict, self.status, self.code, self.detail = Verdict.ERROR, status, code, detail

    def judge(self) -> None:
        """After the end: compare with the model."""
        self.ended_s = time.monotonic()
        expected = mock_model.text(self.ask.tokens)
        if self.verdict in (Verdict.ERROR, Verdict.LEFT):
            # What came before an error must be right, too.
            if not expected.startswith(self.text):
                self._wrong("foreign text before the end")
            elif self.verdict is Verdict.ERROR and not (self.status and self.code):
                self._wrong(f"an error without status or code: {self.detail}")
            return
        usage = (len(self.ask.prompt), len(self.ask.tokens))
        if self.detail:
            self._wrong(self.detail)
        elif self.finish_reason is None:
            self._wrong("cut off without a word")
        elif self.text != expected:
            self._wrong(f"text is {self.text!r}, not {expected!r}")
        elif self.finish_reason != self.ask.finish_reason:
            self._wrong(f"finish_reason is {self.finish_reason}, not {self.ask.finish_reason}")
        elif self.usage != usage:
            self._wrong(f"usage is {self.usage}, not {usage}")
        else:
            self.verdict = Verdict.RIGHT

    def _wrong(self, why: str) -> None:
        self.verdict, self.detail = Verdict.WRONG, why

    def __str__(self) -> str:
        took = f"{self.ended_s - self.begun_s:.2f} s"
        head = f"{self.protocol} {self.verdict.value} after {len(self.text)} characters, {took}"
        size = f"prompt {len(self.ask.prompt)}, answer {len(self.ask.tokens)}"
        return f"{head} ({size}): {self.status} {self.code} {self.detail}"


class Left(Exception):
    """The client goes away."""


def may_leave(outcome: Outcome) -> None:
    """Raise Left if this client has seen enough."""
    leave_after = outcome.ask.leave_after
    if leave_after is not None and len(outcome.text) >= leave_after:
        outcome.verdict = Verdict.LEFT
        raise Left


async def over_http(address: str, outcome: Outcome) -> None:
    """One streamed completion on a connection of its own."""
    ask = outcome.ask
    body = {
        "model": "mock",
        "prompt": ask.prompt,
        "max_tokens": ask.max_tokens,
        "temperature": ask.temperature,
        "seed": ask.seed,
        "ignore_eos": ask.ignore_eos,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    data = json.dumps(body).encode()
    host, _, port = address.rpartition(":")
    writer = None
    try:
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
        writer.write(
            f"POST /v1/completions HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n".encode()
            + data
        )
        status, _ = await read_head(reader)
        if status != 200:
            error = json.loads(await reader.read())["error"]
            outcome.failed(str(status), error["code"], error["message"])
            return
        async for event in read_events(reader):
            _take_event(outcome, event)
            may_leave(outcome)
    except (OSError, EOFError, ValueError) as error:
        if outcome.verdict is not Verdict.ERROR:
            outcome.failed("connection", type(error).__name__, str(error))
    finally:
        if writer is not None:
            writer.close()


def _take_event(outcome: Outcome, event: str) -> None:
    if event == "[DONE]":
        if outcome.finish_reason is None or outcome.usage is None:
            outcome.detail = "[DONE] without finish_reason and usage"
        return
    found = json.loads(event)
    if error := found.get("error"):
        outcome.failed("stream", error["code"], error["message"])
        return
    for choice in found["choices"]:
        if outcome.finish_reason is not None:
            outcome.detail = "text after the end"
        outcome.got(choice["text"])
        outcome.finish_reason = choice["finish_reason"]
    if usage := found.get("usage"):
        outcome.usage = (usage["prompt_tokens"], usage["completion_tokens"])


async def over_grpc(stub: inference_pb2_grpc.InferenceServiceStub, outcome: Outcome) -> None:
    """One Generate."""
    ask = outcome.ask
    request = inference_pb2.GenerateRequest(
        token_ids=inference_pb2.TokenIds(ids=ask.prompt),
        options=inference_pb2.AnswerOptions(
            max_tokens=ask.max_tokens,
            ignore_eos=ask.ignore_eos,
            sampling=inference_pb2.Sampling(temperature=ask.temperature, seed=ask.seed),
        ),
    )
    call = stub.Generate(request, timeout=HANG_S + 5)
    number = 0
    try:
        async for event in call:
            if event.sequence_number != number:
                outcome.detail = f"event {event.sequence_number} instead of {number}"
            number += 1
            outcome.got(event.delta.text)
            match event.WhichOneof("event"):
                case "finished":
                    outcome.finish_reason = FINISH.get(event.finished.reason, "unknown")
                case "done":
                    usage = event.done.usage
                    outcome.usage = (usage.prompt_tokens, usage.completion_tokens)
            may_leave(outcome)
    except grpc.aio.AioRpcError as error:
        outcome.failed(error.code().name, reason_of(error), error.details() or "")
    except Left:
        call.cancel()
        raise


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The stable code of an error; "connection" where no server said one."""
    status = rpc_status.from_call(cast(grpc.Call, error))
    for detail in () if status is None else status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            return str(info.reason)
    return "connection" if error.code() is grpc.StatusCode.UNAVAILABLE else ""


class Results:
    """Outcomes of some traffic."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        self.all = outcomes

    def of(self, verdict: Verdict) -> list[Outcome]:
        """Those with this verdict."""
        return [one for one in self.all if one.verdict is verdict]

    @property
    def errors(self) -> Counter[tuple[str, str]]:
        """(status, code) of the clear errors."""
        return Counter((one.status, one.code) for one in self.of(Verdict.ERROR))

    @property
    def longest_stall_s(self) -> float:
        """Over all answers that were right."""
        return max((one.stall_s for one in self.of(Verdict.RIGHT)), default=0.0)

    def check(self, *, at_least: int = 1, errors: frozenset[str] = frozenset()) -> None:
        """No answer is wrong, and no error but with these codes; so many answers are right."""
        wrong = [str(one) for one in self.of(Verdict.WRONG)]
        assert not wrong, "\n".join(wrong[:10])
        other = [str(one) for one in self.of(Verdict.ERROR) if one.code not in errors]
        assert not other, f"{len(other)} of {len(self.all)} failed:\n" + "\n".join(other[:10])
        assert len(self.of(Verdict.RIGHT)) >= at_least, Counter(o.verdict for o in self.all)


class Traffic:
    """`clients` that ask one thing after the other; `stop` lets them finish what they asked.

    rest_s: between two requests of one client.
    """

    def __init__(
        self,
        http: str | None,
        grpc_address: str | None,
        source: Iterator[Ask],
        *,
        clients: int = 8,
        rest_s: float = 0.0,
    ) -> None:
        assert http or grpc_address
        self._http, self._grpc = http, grpc_address
        self._source = source
        self._clients = clients
        self._rest_s = rest_s
        self._outcomes: list[Outcome] = []
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    @property
    def is_running(self) -> bool:
        """Whether an answer is still to come."""
        return self._thread.is_alive()

    @property
    def done(self) -> list[Outcome]:
        """Those that ended so far."""
        with self._lock:
            return list(self._outcomes)

    def count(self, verdict: Verdict = Verdict.RIGHT) -> int:
        """How many ended so."""
        return sum(one.verdict is verdict for one in self.done)

    def stop(self) -> Results:
        """Ask no more, wait for all answers."""
        self._is_over.set()
        return self.finish()

    def finish(self) -> Results:
        """Ask all that the source has, wait for all answers."""
        self._thread.join()
        if self._failure is not None:
            raise AssertionError("the traffic itself failed") from self._failure
        return Results(self._outcomes)

    def _run(self) -> None:
        try:
            asyncio.run(self._ask_all())
        except BaseException as error:  # noqa: BLE001
            self._failure = error

    async def _ask_all(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stubs = []
            for _ in range(max(self._clients // 4, 1) if self._grpc else 0):
                channel = grpc.aio.insecure_channel(str(self._grpc), options=CHANNEL_OPTIONS)
                await stack.enter_async_context(channel)
                stub: Any = inference_pb2_grpc.InferenceServiceStub
                stubs.append(stub(channel))
            await asyncio.gather(*(self._client(k, stubs) for k in range(self._clients)))

    async def _client(self, k: int, stubs: list[inference_pb2_grpc.InferenceServiceStub]) -> None:
        is_http = not stubs or (bool(self._http) and k % 2 == 0)
        while not self._is_over.is_set():
            ask = next(self._source, None)
            if ask is None:
                return
            outcome = Outcome(ask, "http" if is_http else "grpc")
            if is_http:
                assert self._http is not None
                await judged(over_http(self._http, outcome), outcome)
            else:
                await judged(over_grpc(stubs[k % len(stubs)], outcome), outcome)
            with self._lock:
                self._outcomes.append(outcome)
            is_error = outcome.verdict is Verdict.ERROR
            await asyncio.sleep(max(self._rest_s, AFTER_ERROR_S * is_error))


async def judged(work: Coroutine[None, None, None], outcome: Outcome) -> None:
    """Run one request to its end or to the end of our patience."""
    try:
        async with asyncio.timeout(HANG_S):
            await work
    except Left:
        pass
    except TimeoutError:
        outcome.verdict, outcome.detail = Verdict.WRONG, f"no end within {HANG_S:g} s: a hang"
    outcome.judge()


def every(count: int, source: Iterator[Ask], change: Callable[[Ask], Ask]) -> Iterator[Ask]:
    """`source`, each `count`-th one changed."""
    for index, ask in enumerate(source):
        yield change(ask) if index % count == count - 1 else ask
