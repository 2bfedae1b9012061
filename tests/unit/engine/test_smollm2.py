"""SmolLM2 in float32 writes the tokens that transformers wrote, whatever the batch and the way.

The answers were recorded by `python -m bench.exact --record`; that bench compares live.
"""

from __future__ import annotations

import pytest

from dopd.engine.load import load
from dopd.engine.torch import TorchEngine
from dopd.types import LogitAdjustments, SamplingParams
from tests.support import smollm2, stepping

pytestmark = [pytest.mark.model, pytest.mark.timeout(180)]


def load_model() -> TorchEngine:
    return load(smollm2.require(), dtype="float32", device="cpu", kv_memory="256MiB")


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return load_model()


@pytest.fixture(scope="module")
def other() -> TorchEngine:
    return load_model()


def check(running: list[stepping.Running], cases: list[smollm2.Case]) -> None:
    for sequence, case in zip(running, cases, strict=True):
        assert sequence.tokens == case.tokens, case.text
        assert smollm2.worst_logprob(sequence, case.top) < 1e-3, case.text


def test_prompts_in_one_batch(engine: TorchEngine) -> None:
    cases = smollm2.cases()[::3]
    assert len(cases) == 8
    running = stepping.start(engine, [case.prompt for case in cases], smollm2.NUM_TOKENS)
    stepping.run(engine, running, smollm2.NUM_TOKENS)
    check(running, cases)


def test_prompts_in_chunks_beside_decoding_neighbours(engine: TorchEngine) -> None:
    cases = smollm2.cases()[-5:-1]
    running = stepping.start(engine, [case.prompt for case in cases], smollm2.NUM_TOKENS)
    stepping.run(engine, running, smollm2.NUM_TOKENS, budget=13)
    check(running, cases)


def test_one_prompt_alone(engine: TorchEngine) -> None:
    cases = smollm2.cases()[:1]
    running = stepping.start(engine, [cases[0].prompt], smollm2.NUM_TOKENS)
    stepping.run(engine, running, smollm2.NUM_TOKENS)
    check(running, cases)


def test_prefill_here_and_decode_there(engine: TorchEngine, other: TorchEngine) -> None:
    cases = smollm2.cases()[:2]
    prompts = [case.prompt for case in cases]
    sources = stepping.start(engine, prompts, smollm2.NUM_TOKENS)
    stepping.run(engine, sources, 1)
    targets = hand_off(engine, sources, other)
    check(targets, cases)


def hand_off(
    engine: TorchEngine, sources: list[stepping.Running], other: TorchEngine
) -> list[stepping.Running]:
    """Go on in other pages of another engine, to the end."""
    prompts = [source.prompt for source in sources]
    targets = stepping.start(other, prompts[::-1], smollm2.NUM_TOKENS, sources[0].sampling)[::-1]
    for source, target in zip(sources, targets, strict=True):
        for one, there in zip(source.pages, target.pages, strict=True):
            other.pool.page(there)[:] = engine.pool.page(one)
        target.computed, target.drawn = source.computed, list(source.drawn)
        target.adjustments = source.adjustments
    stepping.run(other, targets, smollm2.NUM_TOKENS)
    return targets


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_penalties_give_the_same_tokens_through_a_hand_off(
    engine: TorchEngine, other: TorchEngine, temperature: float
) -> None:
    prompts = [smollm2.cases()[0].prompt]
    params = SamplingParams(temperature=temperature, top_p=0.95, seed=5)

    def started(adjustments: LogitAdjustments) -> list[stepping.Running]:
        running = stepping.start(engine, prompts, smollm2.NUM_TOKENS, params)
        for one in running:
            one.adjustments = adjustments
        return running

    plain = stepping.run(engine, started(LogitAdjustments()), smollm2.NUM_TOKENS)
    # The most frequent token of the plain answers shall never come.
    banned = max(plain[0], key=plain[0].count)
    how = LogitAdjustments(0.4, 0.3, 1.15, ((banned, -100.0),))
    here = stepping.run(engine, started(how), smollm2.NUM_TOKENS)
    sources = started(how)
    stepping.run(engine, sources, 5)
    there = [one.tokens for one in hand_off(engine, sources, other)]
    assert here == there
    assert here != plain
    assert all(banned not in tokens for tokens in here)
    assert [len(set(tokens)) for tokens in here] >= [len(set(tokens)) for tokens in plain]
