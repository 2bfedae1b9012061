"""Predicted step times: fitted to measured steps, and corrected by what steps take."""

from pathlib import Path

import pytest

from dopd.engine.timings import Timings
from dopd.engine.torch_cost import StepCost, work_of
from dopd.types import Row, SamplingParams, StepWork

GREEDY = SamplingParams(temperature=0.0)


def tiny(fixed: float, per_token: float, per_pair: float, per_context: float) -> Timings:
    return Timings(
        "tiny",
        weights_us=fixed,
        memory_us_per_token=per_token,
        attention_us_per_pair=per_pair,
        context_us_per_token=per_context,
    )


def row(tokens: int, start: int = 0, pos: int = 0) -> Row:
    return Row(0, [0] * tokens, start, [], GREEDY, pos)


def test_work_counts_prompt_tokens_with_what_they_look_at_apart_from_those_that_decode() -> None:
    assert work_of([row(1, 99, pos=1)]) == StepWork(0, 0, 1, 100)
    mixed = StepWork(4, 4 * 6 + 10, 1, 11)
    assert work_of([row(1, 10, pos=3), row(4, 6)]) == mixed
    # A prompt of one token is a prompt.
    assert work_of([row(1, 0)]) == StepWork(1, 1)


def test_fit_gives_back_the_measured_steps() -> None:
    cost = StepCost.fit(
        "tiny", one=10_100, many=16_400, many_tokens=64, long=10_600, deep=22_800, context=1000
    )
    assert cost.expect_us(StepWork(0, 0, 1)) == 10_100
    assert cost.expect_us(StepWork(64)) == 16_400
    assert cost.expect_us(StepWork(0, 0, 1, 1000)) == 10_600
    assert cost.expect_us(StepWork(64, 64_000)) == pytest.approx(22_800, rel=0.02)


def test_a_mixed_step_costs_its_parts_with_one_fixed_part() -> None:
    cost = StepCost(tiny(1000.0, 10.0, 0.1, 2.0))
    assert cost.expect_us(StepWork(0, 0, 4, 100)) == 1000 + 40 + 200
    assert cost.expect_us(StepWork(50, 500, 0, 0)) == 1000 + 500 + 50
    assert cost.expect_us(StepWork(50, 500, 4, 100)) == 1000 + 40 + 200 + 500 + 50
    assert cost.expect_us(StepWork()) == 0


def test_noisy_measurements_never_predict_nothing() -> None:
    # The clock says that more work took less time.
    cost = StepCost.fit("tiny", one=500, many=100, many_tokens=64, long=50, deep=10, context=1000)
    assert cost.expect_us(StepWork(64)) >= cost.expect_us(StepWork(0, 0, 1)) >= 1


def test_prediction_follows_what_steps_take_and_kinds_apart() -> None:
    cost = StepCost(tiny(1000.0, 10.0, 0.0, 0.0))
    decode, prefill = StepWork(0, 0, 8), StepWork(100)
    before = cost.expect_us(prefill)
    for _ in range(60):
        cost.learn(decode, 3240.0)
    assert cost.expect_us(decode) == pytest.approx(3240, rel=0.02)
    assert cost.expect_us(prefill) == before


def test_a_mixed_step_corrects_neither_kind() -> None:
    cost = StepCost(tiny(1000.0, 10.0, 0.0, 0.0))
    mixed = StepWork(100, 0, 8)
    before = cost.expect_us(mixed)
    cost.learn(mixed, 100_000.0)
    assert cost.expect_us(mixed) == before


def test_one_outlier_moves_the_prediction_little() -> None:
    cost = StepCost(tiny(1000.0, 0.0, 0.0, 0.0))
    cost.learn(StepWork(0, 0, 1), 10_000_000.0)
    assert cost.expect_us(StepWork(0, 0, 1)) < 1500


def test_the_router_reads_what_was_measured_and_predicts_the_same(tmp_path: Path) -> None:
    router = pytest.importorskip("dopd._router")
    cost = StepCost(tiny(1000.0, 10.5, 0.125, 2.25))
    path = tmp_path / "timings.json"
    path.write_text(cost.timings.to_json())
    prompts = [(100, 0), (64, 900)]
    expected = cost.expect_us(StepWork().with_prompts(prompts, 164))
    assert router.step_time(str(path), prompts, 0, 0) == expected
    assert router.step_time(str(path), [], 8, 4000) == cost.expect_us(StepWork(0, 0, 8, 4000))
