"""Whole workers in this process: real threads, real sockets, the mock engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dopd.engine.base import Engine
from dopd.engine.mock import MockEngine, draw, mix
from dopd.sched.events import State
from dopd.types import Role, Row, Sampled, SamplingParams
from dopd.worker.build import Worker, make_worker
from dopd.worker.config import WorkerConfig
from tests.support.scripted_router import TOKEN, WAIT_S


class GatedEngine(MockEngine):
    """Steps only as often as a test allows it."""

    def __init__(self, num_pages: int = 4096) -> None:
        super().__init__(num_pages)
        self._steps = threading.Semaphore(0)

    def allow(self, num_steps: int) -> None:
        """Let so many more steps happen."""
        self._steps.release(num_steps)

    def step(self, rows: Sequence[Row]) -> list[Sampled | Exception | None]:
        assert self._steps.acquire(timeout=WAIT_S), "no step was allowed"
        return super().step(rows)


def wait_for_state(worker: Worker, slot: int, state: State) -> None:
    """Until the seat is in this state."""
    desk = worker.desk
    with desk.changed:
        assert desk.changed.wait_for(
            lambda: slot in desk.seats.by_slot and desk.seats.by_slot[slot].state is state, WAIT_S
        ), f"slot {slot} did not become {state.name}: {desk.seats.by_slot}"


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


@contextmanager
def running(
    name: str,
    join: str,
    *,
    role: Role = Role.MIXED,
    engine: Engine | None = None,
    num_pages: int = 4096,
    token: str = TOKEN,
    **settings: object,
) -> Iterator[Worker]:
    """A worker that steps in its own thread."""
    config = WorkerConfig(role=role, join=join, join_token=token, mock=True, name=name, **settings)
    worker = make_worker(config, engine or MockEngine(num_pages))
    worker.transport.start()
    worker.attach.start()
    thread = threading.Thread(target=worker.loop.run, name=f"steps-{name}", daemon=True)
    thread.start()
    try:
        yield worker
    finally:
        worker.desk.stop()
        thread.join(WAIT_S)
        worker.attach.close()
        worker.transport.close()
        assert not thread.is_alive()
        worker.desk.seats.pages.check()
