"""The prefix cache over real attention: greedy answers in float32 with it are those without."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from dopd.engine.load import load
from dopd.engine.torch import TorchEngine
from dopd.types import Commands, Compute, Endpoint, Grant, Limits, Open, Role, SamplingParams
from dopd.worker.build import make_desk
from dopd.worker.loop import StepLoop
from dopd.worker.session import Started
from tests.support import reference
from tests.unit.engine.test_torch_worker import Session

MAX_TOKENS = 10


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    folder: Path = tmp_path_factory.mktemp("tiny")
    reference.tiny_llama().save_pretrained(folder)
    return load(folder, dtype="float32", device="cpu", kv_memory="4MiB", name="tiny")


def answers(engine: TorchEngine, prompts: list[list[int]], salt: bytes) -> tuple[list[str], int]:
    """Answers of prompts that come one after another, and the tokens that were reused."""
    ticket = Grant("w", 1, (Endpoint("fake", ""),), 0)
    desk = make_desk(engine, Role.MIXED, ticket, 8, 32, is_poisoning=True)
    loop, session = StepLoop(desk, engine), Session()
    desk.post(Started(session, prefix_cache=True))
    texts, reused = [], 0
    for prompt in prompts:
        pages = -(-(len(prompt) + MAX_TOKENS) // engine.geometry.page_size)
        limits = Limits(MAX_TOKENS, ignore_eos=True)
        one = Open(0, pages, len(prompt), limits, Compute(prompt), SamplingParams(temperature=0.0))
        desk.post(Commands(1, [dataclasses.replace(one, prefix_salt=salt)]))
        tokens: list[int] = []
        while len(tokens) < MAX_TOKENS:
            loop.turn()
            while session.reports:
                report = session.reports.popleft()
                tokens += report.tokens
                reused += sum(report.reused_tokens)
        texts.append(" ".join(map(str, tokens)))
    assert desk.seats.pages.num_available == engine.pool.num_pages
    return texts, reused


def test_answers_with_cached_pages_are_those_without(engine: TorchEngine) -> None:
    rng = random.Random(3)
    stems = [[rng.randrange(300) for _ in range(80)] for _ in range(3)]
    prompts = [
        rng.choice(stems)[: rng.randrange(80)] + [rng.randrange(300) for _ in range(9)]
        for _ in range(40)
    ]
    cold, none = answers(engine, prompts, b"")
    warm, reused = answers(engine, prompts, b"s" * 16)
    assert warm == cold
    assert none == 0
    assert reused > 40 * 16
