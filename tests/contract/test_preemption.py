"""B12: a seat that is preempted is replayed, and its answer is the one it would have been."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dopd.engine.mock import MockEngine
from dopd.types import Result, Row
from tests.support import mock_model
from tests.support.processes import wait_for
from tests.support.server import Server, serve
from tests.support.workers import Running, running

PROMPTS = [[(seed + 7 * n) % 256 for n in range(50 + 10 * seed)] for seed in range(4)]
NUM_TOKENS = 60
# One seat of the batch is preempted in every ninth step, until step 60.
EVERY, LAST = 9, 60


class Preempting(MockEngine):
    """Takes the time of a GPU for a step; some steps preempt one of their seats."""

    def __init__(self) -> None:
        super().__init__(4096, "h100-8b")
        self.worker: Running | None = None
        self.num_steps = 0

    def step(self, rows: Sequence[Row]) -> list[Result]:
        self.num_steps += 1
        if self.worker is not None and self.num_steps % EVERY == 0 and self.num_steps <= LAST:
            self.worker.desk.preempt(rows[self.num_steps % len(rows)].slot)
        return super().step(rows)


@pytest.fixture
def fleet() -> Iterator[tuple[Server, Running]]:
    env = {"DOPD_WORKERS__CANARY_INTERVAL_MS": "0"}
    with serve("--mock", command="router", env=env) as server:
        assert server.join_token_file
        token = Path(server.join_token_file).read_text().strip()
        engine = Preempting()
        with running("w", server.workers, engine=engine, token=token, debug_checks=True) as worker:
            wait_for(lambda: server.status()["workers"], "the worker is attached")
            engine.worker = worker
            yield server, worker


def test_preempted_requests_answer_as_if_nothing_had_been(fleet: tuple[Server, Running]) -> None:
    server, worker = fleet

    def ask(seed: int) -> str:
        sampling = {"temperature": seed % 2, "seed": seed, "ignore_eos": True}
        answer = server.complete(PROMPTS[seed], max_tokens=NUM_TOKENS, **sampling)
        assert answer["usage"]["completion_tokens"] == NUM_TOKENS
        expected = mock_model.answer(PROMPTS[seed], NUM_TOKENS, **sampling)
        assert answer["choices"][0]["text"] == mock_model.text(expected)
        return str(answer["choices"][0]["finish_reason"])

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert set(pool.map(ask, range(len(PROMPTS)))) == {"length"}
    assert server.wait_idle()["replays_total"] >= 3
    pages = worker.desk.seats.pages
    worker.wait_for(lambda: pages.num_available == pages.num_pages, "full pool")
