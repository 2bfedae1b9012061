"""B12: a seat that is preempted is replayed, and its answer is the one it would have been.

Once where a test chooses it, once where answers outgrow the pages that were expected of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dopd.engine.mock import EOS, MockEngine
from dopd.types import Result, Row
from tests.support import mock_model
from tests.support.binaries import binary
from tests.support.processes import Process, ended, wait_for
from tests.support.server import Server, serve
from tests.support.workers import Running, running

PROMPTS = [[(seed + 7 * n) % 256 for n in range(50 + 10 * seed)] for seed in range(4)]
NUM_TOKENS = 60
TIMINGS = "h100-8b"
# Pages: two or three of the long answers at once.
SMALL_POOL = 32
# One seat of the batch is preempted in every ninth step, until step 60.
EVERY, LAST = 9, 60
# So many answers must have ended before the router expects as much of the next ones.
NUM_SHORT = 40


class Preempting(MockEngine):
    """Takes the time of a GPU for a step; some steps preempt one of their seats."""

    def __init__(self) -> None:
        super().__init__(4096, TIMINGS)
        self.worker: Running | None = None
        self.num_steps = 0

    def step(self, rows: Sequence[Row]) -> list[Result]:
        self.num_steps += 1
        if self.worker is not None and self.num_steps % EVERY == 0 and self.num_steps <= LAST:
            self.worker.desk.preempt(rows[self.num_steps % len(rows)].slot)
        return super().step(rows)


@contextlib.contextmanager
def fleet(engine: MockEngine | None, folder: Path) -> Iterator[tuple[Server, Running | None]]:
    """A router, and a worker in this process; without an engine a Rust mock with a small pool."""
    env = {"DOPD_WORKERS__CANARY_INTERVAL_MS": "0"}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serve("--mock", command="router", env=env))
        assert server.join_token_file
        worker = None
        if engine is None:
            words = ("--role", "mixed", "--join", server.workers)
            words += ("--join-token-file", server.join_token_file)
            words += ("--pages", str(SMALL_POOL), "--mock-timings", TIMINGS)
            stack.enter_context(ended(Process(folder, *words, program=binary("dopd-mock"))))
        else:
            token = Path(server.join_token_file).read_text().strip()
            one = running("w", server.workers, engine=engine, token=token, debug_checks=True)
            worker = stack.enter_context(one)
        wait_for(lambda: server.status()["workers"], "the worker is attached")
        yield server, worker


def ask(server: Server, seed: int, num_tokens: int) -> str:
    """One answer, which must be that of a worker on which nothing happens; why it ended."""
    sampling = {"temperature": seed % 2, "seed": seed, "ignore_eos": True}
    prompt = PROMPTS[seed % len(PROMPTS)]
    answer = server.complete(prompt, max_tokens=num_tokens, **sampling)
    assert answer["usage"]["completion_tokens"] == num_tokens
    expected = mock_model.answer(prompt, num_tokens, **sampling)
    assert answer["choices"][0]["text"] == mock_model.text(expected)
    return str(answer["choices"][0]["finish_reason"])


def all_pages_back(server: Server) -> None:
    """Free, or kept for prompts that begin alike."""

    def is_back() -> bool:
        (worker,) = server.status()["workers"]
        pages = worker["pages"]
        return bool(pages["free"] + pages["cached"] == pages["total"])

    wait_for(is_back, "all pages back")


def test_preempted_requests_answer_as_if_nothing_had_been(tmp_path: Path) -> None:
    engine = Preempting()
    with fleet(engine, tmp_path) as (server, worker):
        engine.worker = worker
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            reasons = pool.map(lambda seed: ask(server, seed, NUM_TOKENS), range(len(PROMPTS)))
            assert set(reasons) == {"length"}
        assert server.wait_idle()["replays_total"] >= 3
        all_pages_back(server)


@pytest.mark.parametrize("kind", ["python", "rust"])
def test_answers_that_outgrow_a_small_pool_are_exact_although_some_are_preempted(
    kind: str, tmp_path: Path
) -> None:
    """The router has seen short answers only, and takes in more than have room in the end."""
    engine = MockEngine(SMALL_POOL, TIMINGS) if kind == "python" else None
    with fleet(engine, tmp_path) as (server, _):
        for seed in range(NUM_SHORT):
            short = server.complete([seed], max_tokens=100, logit_bias={str(EOS): 100})
            assert short["choices"][0]["finish_reason"] == "stop"
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda seed: ask(server, seed, 120), range(8))) == {"length"}
        status = server.wait_idle()
        assert status["replays_total"] >= 1
        assert status["replays_total"] == sum(one["preempted"] for one in status["workers"])
        all_pages_back(server)
