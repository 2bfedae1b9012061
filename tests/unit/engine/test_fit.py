"""A calibration gives back the steps that it was made of."""

from __future__ import annotations

import random

import numpy as np
import pytest

from dopd.engine.fit import PARTS, fit, nnls
from dopd.engine.measure import Cell, Plan, Shape
from dopd.engine.timings import Timings
from dopd.errors import DopdError

# As router/core's h100-8b: prompts above 315 tokens are bound by arithmetic.
H100 = Timings(
    "h100",
    step_prefill_us=4000.0,
    step_decode_us=1600.0,
    weights_us=5200.0,
    memory_us_per_token=6.0,
    compute_us_per_token=22.5,
    attention_us_per_pair=0.83e-3,
    context_us_per_token=4.4e-2,
    batch_us_per_seq=20.0,
    mixed_penalty_ratio=0.3,
)


def cells_of(timings: Timings, noise: float, seed: int = 1) -> list[Cell]:
    generator = random.Random(seed)
    cells = []
    for shape in Plan().shapes():
        us = timings.plain_us(shape.work) * generator.gauss(1.0, noise)
        us *= 1 + timings.mixed_penalty_ratio * shape.work.is_mixed
        cells.append(Cell(shape, 5, us, us, us))
    return cells


def test_exact_steps_give_back_the_calibration() -> None:
    found = fit("h100", cells_of(H100, noise=0.0))
    for part in PARTS:
        assert getattr(found.timings, part) == pytest.approx(getattr(H100, part), rel=0.01), part
    # The parts of a mixed step cost a little less than alone: one launch, one reading of weights.
    assert found.timings.mixed_penalty_ratio == pytest.approx(0.3, abs=0.05)
    assert found.median_error < 0.005


@pytest.mark.parametrize("seed", range(5))
def test_noisy_steps_are_predicted_within_their_noise(seed: int) -> None:
    found = fit("h100", cells_of(H100, noise=0.05, seed=seed))
    truth = {cell.shape: cell.us for cell in cells_of(H100, noise=0.0)}
    for shape, us in truth.items():
        if not shape.work.is_mixed:
            assert found.timings.plain_us(shape.work) == pytest.approx(us, rel=0.12), shape


def test_a_device_bound_by_arithmetic_throughout_has_no_part_below_zero() -> None:
    cpu = Timings("cpu", step_prefill_us=500.0, compute_us_per_token=800.0)
    found = fit("cpu", cells_of(cpu, noise=0.1))
    assert all(getattr(found.timings, part) >= 0 for part in PARTS)
    assert found.timings.plain_us(Shape(512).work) == pytest.approx(410_100, rel=0.1)


def test_mixing_that_saves_time_is_no_penalty_below_zero() -> None:
    saving = [
        Cell(cell.shape, 1, cell.us * (0.5 if cell.shape.work.is_mixed else 1.0), 0.0, 0.0)
        for cell in cells_of(H100, noise=0.0)
    ]
    found = fit("h100", saving)
    assert found.timings.mixed_penalty_ratio == 0.0
    assert max(found.penalties.values()) < 0


def test_too_few_steps_are_refused() -> None:
    cells = cells_of(H100, noise=0.0)
    with pytest.raises(DopdError, match="too few"):
        fit("h100", [cell for cell in cells if cell.shape.chunk])
    with pytest.raises(DopdError, match="3 timed steps"):
        fit("h100", cells[:3])


def test_nnls_against_every_choice_of_columns() -> None:
    """The textbook's optimum: the best of least squares over each subset that stays above zero."""
    generator = np.random.default_rng(7)
    for _ in range(50):
        matrix, target = generator.normal(size=(9, 4)), generator.normal(size=9)
        best = float(target @ target)
        for subset in range(1, 16):
            columns = [i for i in range(4) if subset >> i & 1]
            x = np.linalg.lstsq(matrix[:, columns], target, rcond=None)[0]
            if (x >= 0).all():
                best = min(best, float(((matrix[:, columns] @ x - target) ** 2).sum()))
        found = nnls(matrix, target)
        assert (found >= 0).all()
        assert float(((matrix @ found - target) ** 2).sum()) == pytest.approx(best, rel=1e-6)
