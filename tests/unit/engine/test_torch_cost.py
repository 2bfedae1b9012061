"""Predicted step times: fitted to measured steps, and corrected by what steps take."""

import pytest

from dopd.engine.torch_cost import StepCost, Work
from dopd.types import Row


def row(tokens: int, start: int = 0) -> Row:
    return Row(0, [0] * tokens, start, [], None, 0)


def test_work_counts_tokens_and_the_keys_they_look_at() -> None:
    assert Work.of([row(1, 99)]) == Work(tokens=1, context=99, has_prefill=False)
    assert Work.of([row(1, 10), row(4, 6)]) == Work(tokens=5, context=10 + 32, has_prefill=True)


def test_fit_gives_back_the_measured_steps() -> None:
    cost = StepCost.fit(one=10_100, many=16_400, many_tokens=64, long=10_600, context=1000)
    assert cost.expect_us(Work(1, 0, False)) == 10_100
    assert cost.expect_us(Work(64, 0, True)) == 16_400
    assert cost.expect_us(Work(1, 1000, False)) == 10_600


def test_noisy_measurements_never_predict_nothing() -> None:
    # The clock says that more work took less time.
    cost = StepCost.fit(one=500, many=100, many_tokens=64, long=50, context=1000)
    assert cost.expect_us(Work(64, 0, True)) >= cost.expect_us(Work(1, 0, False)) >= 1


def test_prediction_follows_what_steps_take_and_kinds_apart() -> None:
    cost = StepCost(1000.0, 10.0, 0.0)
    decode, prefill = Work(8, 0, False), Work(100, 0, True)
    before = cost.expect_us(prefill)
    for _ in range(60):
        cost.learn(decode, 3240.0)
    assert cost.expect_us(decode) == pytest.approx(3240, rel=0.02)
    assert cost.expect_us(prefill) == before


def test_one_outlier_moves_the_prediction_little() -> None:
    cost = StepCost(1000.0, 0.0, 0.0)
    cost.learn(Work(1, 0, False), 10_000_000.0)
    assert cost.expect_us(Work(1, 0, False)) < 1500
