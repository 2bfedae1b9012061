"""Bias and penalties: the same logits, bit for bit, as a plain reading of vLLM's order gives."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dopd.engine.adjust import FIRST_CAPACITY, Seen, adjust
from dopd.engine.sampler import Draw, sample
from dopd.types import History, LogitAdjustments, Sampled, SamplingParams
from tests.support.cases import cases

VOCAB = 48
F32 = np.float32

tokens = st.lists(st.integers(0, VOCAB - 1), max_size=30)
penalty = st.sampled_from([0.0, -2.0, -0.3, 0.1, 1.5, 2.0])
adjustments = st.builds(
    LogitAdjustments,
    presence_penalty=penalty,
    frequency_penalty=penalty,
    repetition_penalty=st.sampled_from([1.0, 0.01, 0.7, 1.1, 3.0]),
    bias=st.lists(st.tuples(st.integers(0, VOCAB - 1), st.integers(-100, 100)), max_size=4).map(
        tuple
    ),
)
asked = st.tuples(adjustments, tokens, tokens, st.frozensets(st.integers(0, VOCAB + 3), max_size=3))
Asked = tuple[LogitAdjustments, list[int], list[int], frozenset[int]]


def reference(logits: list[np.float32], one: Asked) -> list[np.float32]:
    """One row, one logit at a time, in float32."""
    how, prompt, answer, forbidden = one
    counts, out = Counter(answer), []
    for token, value in enumerate(logits):
        if token in forbidden:
            value = F32("-inf")
        value += F32(sum(added for biased, added in how.bias if biased == token))
        if token in prompt or token in answer:
            scale = F32(how.repetition_penalty)
            value = value / scale if value > 0 else value * scale
        value -= F32(how.frequency_penalty) * F32(counts[token])
        value -= F32(how.presence_penalty) * F32(token in counts)
        out.append(value)
    return out


def history(how: LogitAdjustments, prompt: list[int], answer: list[int]) -> History:
    """As a sequence makes it."""
    return History(how, prompt if how.needs_prompt else [], answer)


@given(st.lists(asked, min_size=1, max_size=4), st.integers(0, 1 << 20))
def test_each_row_of_any_batch_is_what_the_reference_says(rows: list[Asked], seed: int) -> None:
    raw = torch.randn((len(rows), VOCAB), generator=torch.Generator().manual_seed(seed)) * 5
    draws = [
        Draw(SamplingParams(), len(answer), forbidden, history(how, prompt, answer))
        for how, prompt, answer, forbidden in rows
    ]
    adjusted = adjust(raw.clone(), draws)
    for got, logits, one in zip(adjusted, raw, rows, strict=True):
        assert got.tolist() == [float(value) for value in reference(list(logits.numpy()), one)]


@cases(25)
@given(asked, st.integers(0, 1 << 20))
def test_a_hand_off_and_a_replay_draw_the_same(one: Asked, seed: int) -> None:
    """A history that grew with the answer, and one that is made in the middle of it."""
    how, prompt, _, _ = one
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((20, VOCAB), generator=generator) * 3
    params = SamplingParams(temperature=0.9, top_p=0.9, seed=seed)
    answer: list[int] = []
    grown = history(how, prompt, answer)
    for pos in range(20):
        fresh = history(how, prompt, list(answer))
        here, there = (
            sample(logits[pos : pos + 1], [Draw(params, pos, frozenset(), h)])[0]
            for h in (grown, fresh)
        )
        assert isinstance(here, Sampled)
        assert here == there
        answer.append(here.token)


def test_rows_that_ask_for_nothing_draw_as_without_neighbours() -> None:
    logits = torch.randn((3, VOCAB), generator=torch.Generator().manual_seed(2))
    params = SamplingParams(temperature=1.0, seed=4, top_logprobs=2)
    biased = history(LogitAdjustments(bias=((7, 100.0),)), [], [])
    plain = [Draw(params, 3), Draw(params, 3)]
    first, middle, last = sample(logits, [plain[0], Draw(params, 3, frozenset(), biased), plain[1]])
    assert [first, last] == sample(logits[[0, 2]], plain)
    assert isinstance(middle, Sampled)
    assert middle.token == 7
    # Log probabilities are of the raw logits.
    assert middle.logprobs is not None
    assert middle.logprobs.chosen == pytest.approx(float(logits[1].log_softmax(-1)[7]), abs=1e-5)


def test_penalties_keep_greedy_from_repeating_itself() -> None:
    logits = torch.zeros((1, VOCAB))
    logits[0, 5], logits[0, 6], logits[0, 9] = 2.0, 1.9, 1.5
    params, answer = SamplingParams(temperature=0.0), [5]
    for how, expected in [
        (LogitAdjustments(), 5),
        (LogitAdjustments(presence_penalty=0.2), 6),
        (LogitAdjustments(frequency_penalty=0.2), 6),
        (LogitAdjustments(repetition_penalty=1.6), 9),
    ]:
        # The prompt holds 6: repetition looks at it, the others do not.
        draw = Draw(params, 1, frozenset(), history(how, [6], answer))
        (sampled,) = sample(logits, [draw])
        assert isinstance(sampled, Sampled)
        assert sampled.token == expected


def test_the_least_penalty_leaves_a_row_finite_and_a_broken_row_broken() -> None:
    least = LogitAdjustments(repetition_penalty=float(np.finfo(F32).tiny))
    draws = [Draw(SamplingParams(temperature=0.5), 0, frozenset(), history(least, [5], []))] * 2
    logits = torch.full((2, VOCAB), 20.0)
    logits[1, 5] = float("inf")
    sound, broken = sample(logits, draws)
    assert isinstance(sound, Sampled)
    assert sound.token == 5
    assert isinstance(broken, Exception)


def test_columns_grow_past_their_first_capacity() -> None:
    answer = list(range(3 * FIRST_CAPACITY)) * 2
    one = History(LogitAdjustments(frequency_penalty=1.0), [], answer)
    for pos in (1, FIRST_CAPACITY, len(answer)):
        seen = Seen.of(one, pos)
        counted = dict(zip(seen.ids.tolist(), seen.counts.tolist(), strict=True))
        assert counted == Counter(answer[:pos])
    assert one.cache is seen
