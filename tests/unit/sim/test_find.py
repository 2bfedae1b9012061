"""The highest rate: found to its tolerance, in few runs, from anywhere."""

from __future__ import annotations

import pytest

from dopd.sim.find import TOLERANCE, find_rate


@pytest.mark.parametrize("edge", [0.05, 0.9, 1.0, 1.1, 27.4, 300.0])
@pytest.mark.parametrize("start", [0.5, 1.0, 30.0])
def test_the_edge_is_found_to_three_percent(edge: float, start: float) -> None:
    found = find_rate(lambda factor: 0.95 if factor <= edge else 0.5, 0.9, start=start)
    assert found.factor <= edge < found.factor * (1 + TOLERANCE) * 1.0001
    assert found.attainment == 0.95
    assert len(found.tries) <= 24


def test_a_near_start_saves_runs() -> None:
    found = find_rate(lambda factor: 1.0 if factor <= 27.4 else 0.0, 0.9, start=27.0)
    assert len(found.tries) <= 6


def test_a_good_start_takes_three_runs() -> None:
    """As attainment falls near the share: half a point for a percent of rate."""
    found = find_rate(lambda factor: 0.9 - 0.5 * (factor / 27.4 - 1), 0.9, start=27.0)
    assert len(found.tries) <= 3
    assert found.factor <= 27.4 < found.factor * (1 + TOLERANCE) * 1.0001


def test_what_never_holds_is_zero_and_what_always_holds_ends() -> None:
    never = find_rate(lambda _: 0.1, 0.9)
    assert (never.factor, never.attainment) == (0.0, 0.0)
    always = find_rate(lambda _: 1.0, 0.9)
    assert always.factor > 1_000
    assert len(always.tries) < 40


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.1}, {"share": 0.9, "start": 0.0}])
def test_limits_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="out of limits"):
        find_rate(lambda _: 1.0, **wrong)
