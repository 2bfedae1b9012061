"""The draw: greedy, filters, distribution, independence of the batch, and rows that fail alone."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dopd.engine.sampler import Draw, _candidates, sample, uniform
from dopd.types import Sampled, SamplingParams
from tests.support.cases import cases

VOCAB = 4096


def logits_of(*rows: dict[int, float]) -> torch.Tensor:
    """Rows of logits: the given tokens' values, all others far below."""
    logits = torch.full((len(rows), VOCAB), -1e4)
    for row, values in zip(logits, rows, strict=True):
        for token, value in values.items():
            row[token] = value
    return logits


def draw_token(logits: torch.Tensor, pos: int = 0, **params: float) -> int:
    (result,) = sample(logits, [Draw(SamplingParams(**params), pos)])  # type: ignore[arg-type]
    assert isinstance(result, Sampled)
    return result.token


def drawn_set(logits: torch.Tensor, **params: float) -> set[int]:
    return {draw_token(logits, pos, **params) for pos in range(200)}


def test_greedy_takes_the_most_likely_and_the_lowest_id_among_equals() -> None:
    assert draw_token(logits_of({7: 1.0, 9: 2.0}), temperature=0) == 9
    assert draw_token(logits_of({900: 2.0, 7: 2.0, 3000: 2.0}), temperature=0) == 7
    assert draw_token(logits_of({7: 1.0, 9: 2.0}), temperature=1e-9) == 9


def test_draws_follow_the_distribution() -> None:
    # 4000 draws; a share p has standard deviation sqrt(p (1 - p) / 4000) <= 0.008: 5 of them.
    logits = logits_of({5: math.log(0.5), 50: math.log(0.3), 500: math.log(0.2)})
    counts = Counter(draw_token(logits, pos, seed=3) for pos in range(4000))
    for token, share in ((5, 0.5), (50, 0.3), (500, 0.2)):
        assert counts[token] / 4000 == pytest.approx(share, abs=0.04)
    assert sum(counts.values()) == counts[5] + counts[50] + counts[500]


def test_temperature_sharpens_and_flattens() -> None:
    logits = logits_of({1: 0.0, 2: 1.0})
    cold = sum(draw_token(logits, pos, temperature=0.2) == 2 for pos in range(300))
    hot = sum(draw_token(logits, pos, temperature=5.0) == 2 for pos in range(300))
    assert cold > 280
    assert 130 < hot < 220


def test_top_k_keeps_the_k_most_likely() -> None:
    logits = logits_of({i: i / 10 for i in range(20)})
    assert drawn_set(logits, top_k=3) == {17, 18, 19}
    assert drawn_set(logits, top_k=1) == {19}
    assert draw_token(logits, top_k=10 * VOCAB) < 20


def test_top_p_keeps_the_smallest_set_with_that_share() -> None:
    logits = logits_of({1: math.log(0.5), 2: math.log(0.3), 3: math.log(0.15), 4: math.log(0.05)})
    assert drawn_set(logits, top_p=0.45) == {1}
    assert drawn_set(logits, top_p=0.75) == {1, 2}
    assert drawn_set(logits, top_p=0.9) == {1, 2, 3}
    assert drawn_set(logits, top_p=1e-9) == {1}


def test_top_p_is_a_share_of_what_top_k_and_min_p_left() -> None:
    logits = logits_of({1: math.log(0.4), 2: math.log(0.3), 3: math.log(0.2), 4: math.log(0.1)})
    # top_k = 2 leaves 4/7 and 3/7, so 0.5 is reached by the first alone; of the whole it would
    # take two.
    assert drawn_set(logits, top_k=2, top_p=0.5) == {1}
    assert drawn_set(logits, min_p=0.6, top_p=0.5) == {1}
    assert drawn_set(logits, top_p=0.5) == {1, 2}


def test_min_p_is_relative_to_the_most_likely() -> None:
    logits = logits_of({1: math.log(0.5), 2: math.log(0.3), 3: math.log(0.2)})
    assert drawn_set(logits, min_p=0.5) == {1, 2}
    assert drawn_set(logits, min_p=1.0) == {1}
    # A vocabulary of three: what min_p has cut is all that top_k and top_p could take instead.
    small = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert drawn_set(small, min_p=0.5, top_k=3) == {0, 1}
    assert drawn_set(small, min_p=0.5, top_p=0.99) == {0, 1}


@cases(60)
@given(
    st.integers(2, 300),
    st.sampled_from([0.0, 0.01, 1.0, 8.0]),
    st.floats(1e-6, 1.0, exclude_max=True),
    st.integers(0, 1 << 20),
)
def test_top_p_keeps_what_a_full_sort_keeps(
    vocab: int, spread: float, share: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Rounded, so that many are equal: among equals the lowest ids are kept.
    logits = (torch.randn(vocab, generator=generator) * spread).round(decimals=1).double()
    probabilities = torch.softmax(logits, dim=-1)
    values, ids = probabilities.sort(descending=True, stable=True)
    kept = int((values.cumsum(dim=-1) < share * probabilities.sum()).sum()) + 1
    expected = ids[:kept].sort().values
    assert _candidates(logits, SamplingParams(top_p=share)).tolist() == expected.tolist()


def test_draw_depends_on_seed_choice_and_position_only() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn((6, VOCAB), generator=generator)
    params = [SamplingParams(seed=9, choice=i, top_p=0.95, temperature=1.3) for i in range(6)]
    draws = [Draw(param, pos=10 + i) for i, param in enumerate(params)]
    together = sample(logits, draws)
    order = [4, 1, 5, 0, 3, 2]
    shuffled = sample(logits[order], [draws[i] for i in order])
    alone = [sample(logits[i : i + 1], [draws[i]])[0] for i in range(6)]
    assert together == alone
    assert [together[i] for i in order] == shuffled


def test_uniform_differs_in_each_part_of_the_counter_and_is_evenly_spread() -> None:
    numbers = {
        uniform(seed, choice, pos)
        for seed in (0, 1, 2**64 - 1)
        for choice in (0, 1)
        for pos in (0, 1)
    }
    assert len(numbers) == 12
    assert all(0 <= number < 1 for number in numbers)
    tenths = Counter(int(10 * uniform(1, 0, pos)) for pos in range(10_000))
    # 1000 expected in each tenth, standard deviation 30: 5 of them.
    assert all(abs(tenths[tenth] - 1000) < 150 for tenth in range(10))


def test_uniform_is_the_published_splitmix64() -> None:
    # First output of splitmix64 from state 0, as published: e220a8397b1dcdaf.
    from dopd.engine.sampler import _mix

    assert _mix(0) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_row_with_broken_logits_fails_alone(bad: float) -> None:
    logits = logits_of({1: 1.0}, {2: 1.0}, {3: 1.0})
    logits[1, 77] = bad
    results = sample(logits, [Draw(SamplingParams(temperature=0), 0)] * 3)
    assert [type(result) is Sampled for result in results] == [True, False, True]
    assert "not finite" in str(results[1])
    assert results[0] == Sampled(1)


def test_row_without_any_token_fails() -> None:
    (result,) = sample(torch.full((1, VOCAB), -math.inf), [Draw(SamplingParams(), 0)])
    assert isinstance(result, Exception)


@pytest.mark.parametrize("temperature", [0, 1])
def test_forbidden_tokens_are_not_drawn_and_neighbours_do_not_notice(temperature: float) -> None:
    logits = logits_of({1: 5.0, 2: 3.0}, {1: 5.0})
    params = SamplingParams(temperature=temperature, top_logprobs=1)
    banned = Draw(params, 0, frozenset({1, VOCAB + 5}))
    first, second = sample(logits, [banned, Draw(params, 0)])
    assert isinstance(first, Sampled)
    assert isinstance(second, Sampled)
    assert (first.token, second.token) == (2, 1)
    # Logprobs are those of the model, which knows of no ban.
    assert first.logprobs is not None
    assert [token for token, _ in first.logprobs.top] == [1]


def test_logprobs_are_of_the_raw_distribution_best_first() -> None:
    logits = logits_of({1: math.log(0.5), 2: math.log(0.3), 3: math.log(0.2)})
    params = SamplingParams(temperature=0.3, top_k=1, top_logprobs=2)
    (result,) = sample(logits, [Draw(params, 0)])
    assert isinstance(result, Sampled)
    assert result.logprobs is not None
    assert result.logprobs.chosen == pytest.approx(math.log(0.5), abs=1e-5)
    assert [token for token, _ in result.logprobs.top] == [1, 2]
    assert result.logprobs.top[1][1] == pytest.approx(math.log(0.3), abs=1e-5)
    (bare,) = sample(logits, [Draw(SamplingParams(top_logprobs=0), 0)])
    assert isinstance(bare, Sampled)
    assert bare.logprobs is not None
    assert bare.logprobs.top == ()
