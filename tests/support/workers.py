"""Whole workers in this process: real threads, real sockets, the mock engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from dopd.engine.base import Engine
from dopd.engine.mock import MockEngine, draw, mix
from dopd.sched.events import State
from dopd.types import Result, Role, Row, SamplingParams
from dopd.worker.build import Worker, make_worker
from dopd.worker.config import WorkerConfig
from dopd.worker.transports import SYSTEM, Libraries
from tests.support.scripted_router import TOKEN, WAIT_S

POLL_S = 0.005


class GatedEngine(MockEngine):
    """Steps only as often as a test allows it. num_steps: steps done."""

    def __init__(self, num_pages: int = 4096) -> None:
        super().__init__(num_pages)
        self.num_steps = 0
        self._steps = threading.Semaphore(0)

    def allow(self, num_steps: int) -> None:
        """Let so many more steps happen."""
        self._steps.release(num_steps)

    def step(self, rows: Sequence[Row]) -> list[Result]:
        assert self._steps.acquire(timeout=WAIT_S), "no step was allowed"
        results = super().step(rows)
        self.num_steps += 1
        return results


H_START = 0x9E3779B97F4A7C15


def expected_answer(prompt: list[int], num_tokens: int) -> list[int]:
    """What the mock model answers, by its definition and without pages: greedy."""
    h = H_START
    for token in prompt:
        h = mix(h ^ token)
    answer: list[int] = []
    while len(answer) < num_tokens:
        answer.append(draw(h, SamplingParams(temperature=0.0), len(answer)).token)
        h = mix(h ^ answer[-1])
    return answer


class Running:
    """A worker that steps in its own thread. failure: what ended the step loop, if it failed."""

    def __init__(self, worker: Worker, engine: Engine) -> None:
        self.worker = worker
        self.engine = engine
        self.desk = worker.desk
        self.attach = worker.attach
        self.failure: Exception | None = None
        self.thread = threading.Thread(target=self._run, name="steps", daemon=True)

    def start(self) -> None:
        self.worker.transport.start()
        self.worker.attach.start()
        self.thread.start()

    def stop(self) -> None:
        """As a process ends: the stream and all links are gone."""
        self.desk.stop()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()
        self.worker.transport.close()
        self.desk.seats.pages.check()

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Until something holds at the desk; looked at again and again, under its lock."""
        deadline = time.monotonic() + WAIT_S
        with self.desk.changed:
            while not condition():
                assert time.monotonic() < deadline, f"no {what}: {self.desk.seats.by_slot}"
                self.desk.changed.wait(POLL_S)

    def step_until(self, condition: Callable[[], object], what: str) -> None:
        """Allow one step after the other until something holds; the engine is a GatedEngine."""
        engine = self.engine
        assert isinstance(engine, GatedEngine)
        while not condition():
            before = engine.num_steps
            engine.allow(1)
            self.wait_for(lambda b=before: engine.num_steps > b or condition(), what)

    def wait_for_state(self, slot: int, state: State) -> None:
        """Until the seat is in this state."""
        seats = self.desk.seats.by_slot
        self.wait_for(lambda: slot in seats and seats[slot].state is state, state.name)

    def _run(self) -> None:
        try:
            self.worker.loop.run()
        except Exception as error:  # noqa: BLE001
            self.failure = error
        self.worker.attach.close()


@contextmanager
def running(
    name: str,
    join: str,
    *,
    role: Role = Role.MIXED,
    engine: Engine | None = None,
    num_pages: int = 4096,
    token: str = TOKEN,
    libraries: Libraries = SYSTEM,
    **settings: Any,
) -> Iterator[Running]:
    """A whole worker in this process."""
    config = WorkerConfig(role=role, join=join, join_token=token, mock=True, name=name, **settings)
    engine = engine or MockEngine(num_pages)
    one = Running(make_worker(config, engine, libraries), engine)
    one.start()
    try:
        yield one
    finally:
        one.stop()
