"""Cascade attention in an engine, over FlashInfer's double: the tokens stay those of torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from dopd.attention import choose, flashinfer_shape
from dopd.attention.base import Attention
from dopd.engine.load import load
from dopd.engine.torch import TorchEngine
from dopd.types import Commands, Compute, Endpoint, Grant, Limits, Open, Role, SamplingParams
from dopd.worker.build import make_desk
from dopd.worker.loop import StepLoop
from dopd.worker.session import Started
from tests.support import stepping
from tests.support.gpu import stub_flashinfer
from tests.support.gpu.graph_engine import with_graphs
from tests.support.gpu.stub_flashinfer import State
from tests.unit.engine.test_torch_worker import Session

NUM_TOKENS = 6
# Steps of nine prompts and their answers, and turns without one.
MOST_TURNS = 60
NUM_PAGES = 256
COMMON = [7 * i % 251 for i in range(17 * 16)]
TAILS = [[3 + i] * (1 + 5 * i % 19) for i in range(9)]
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def plain() -> TorchEngine:
    return load("random:tiny", device="cpu", kv_memory="8MiB", max_model_len=512)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[State]]:
    monkeypatch.setattr(flashinfer_shape, "MIN_WORKSPACE_BYTES", 1 << 20)
    with stub_flashinfer.installed() as state:
        yield state


@pytest.fixture
def engine(plain: TorchEngine, double: type[State]) -> TorchEngine:
    """With graphs for up to 16 rows."""
    num_heads = plain._weights.config.num_heads

    def attention(pool: torch.Tensor, max_row_pages: int) -> Attention:
        kind = choose.flashinfer().FlashInferCascade
        made: Attention = kind(pool, num_heads, max_rows=16, max_row_pages=max_row_pages)
        return made

    made = with_graphs(
        plain, [1, 16], stub_flashinfer.called_again, NUM_PAGES, make_attention=attention
    )
    double.plans.clear()
    return made


def logprobs(running: stepping.Running) -> list[float]:
    """Of each token: a made-up model's tokens alone say little."""
    return [one.logprobs.chosen for one in running.drawn if one.logprobs is not None]


def expected_of(plain: TorchEngine, prompts: list[list[int]]) -> list[list[int]]:
    running = stepping.start(plain, prompts, NUM_TOKENS, GREEDY)
    return stepping.run(plain, running, NUM_TOKENS)


def test_steps_that_share_are_computed_without_graph_and_others_with(
    engine: TorchEngine, plain: TorchEngine, double: type[State]
) -> None:
    prompts = [COMMON + tail for tail in TAILS]
    running = stepping.start(engine, prompts, NUM_TOKENS)
    # The first one fills the pages that all have.
    stepping.step(engine, running[:1])
    for other in running[1:]:
        other.pages[:17] = running[0].pages[:17]
        other.computed = len(COMMON)
    stepping.step(engine, running[1:])
    double.plans.clear()
    layers = plain.geometry.num_layers
    stepping.step(engine, running)
    assert double.merges == layers
    assert double.plans[:2] == ["decode", "prefill"]
    # What was foreseen meanwhile shares as well.
    hits = engine.foresight.hits
    stepping.step(engine, running)
    assert (double.merges, engine.foresight.hits) == (2 * layers, hits + 1)
    # Seven rows are too few: those go by the graph.
    found = stepping.run(engine, running[:7], NUM_TOKENS)
    assert double.merges == 2 * layers and "fast" in double.plans
    found += stepping.run(engine, running[7:], NUM_TOKENS)
    expected = stepping.start(plain, prompts, NUM_TOKENS)
    assert found == stepping.run(plain, expected, NUM_TOKENS)
    for one, other in zip(running, expected, strict=True):
        assert logprobs(one) == pytest.approx(logprobs(other), abs=1e-4)


def test_prefix_cache_makes_rows_share(
    engine: TorchEngine, plain: TorchEngine, double: type[State]
) -> None:
    """Through the scheduler: one prompt comes first, nine that begin like it find its pages."""
    ticket = Grant("w", 1, (Endpoint("fake", ""),), 0)
    desk = make_desk(engine, Role.MIXED, ticket, 16, 512, is_poisoning=True)
    loop, session = StepLoop(desk, engine), Session()
    desk.post(Started(session, prefix_cache=True))
    reused, answers = 0, dict[int, list[int]]()
    for prompts in ([[*COMMON, 1]], [COMMON + tail for tail in TAILS]):
        answers = {slot: [] for slot in range(len(prompts))}
        for slot, prompt in enumerate(prompts):
            pages = -(-(len(prompt) + NUM_TOKENS) // engine.geometry.page_size)
            limits = Limits(NUM_TOKENS, ignore_eos=True)
            one = Open(slot, pages, len(prompt), limits, Compute(prompt), GREEDY)
            desk.post(Commands(1, [dataclasses.replace(one, prefix_salt=b"s" * 16)]))
        for _ in range(MOST_TURNS):
            loop.turn()
            while session.reports:
                report = session.reports.popleft()
                reused += sum(report.reused_tokens)
                for slot, token in zip(report.token_slots, report.tokens, strict=True):
                    answers[slot].append(token)
    assert reused == len(COMMON) * len(TAILS)
    assert double.merges >= plain.geometry.num_layers * (NUM_TOKENS - 2)
    assert list(answers.values()) == expected_of(plain, [COMMON + tail for tail in TAILS])
