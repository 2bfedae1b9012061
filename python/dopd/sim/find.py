"""The highest rate that a share of requests survives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TOLERANCE = 0.03
# The bracket widens by this at first, then by its square, and so on; by less where the first try is
# near the share, as the start was a good guess.
STEP = 1.15
STEP_PER_MISS = 1.5
# The next try divides the bracket by what its ends attained, but not closer to one of them.
INNER = 0.3
TRIES_MAX = 40
FACTOR_MIN = 1e-3
FACTOR_MAX = 1e4


@dataclass(frozen=True, slots=True)
class Found:
    """`factor`: the highest rate factor that held; 0 if none did. `tries`: (factor, attainment)."""

    factor: float
    attainment: float
    tries: tuple[tuple[float, float], ...]


def find_rate(
    attained: Callable[[float], float],
    share: float,
    *,
    start: float = 1.0,
    tolerance: float = TOLERANCE,
) -> Found:
    """Highest factor at which `attained(factor)` is at least `share`, to `tolerance`.

    Walks up or down from `start` in growing steps, then divides the bracket (in logarithms). Takes
    attainment to fall with the rate; where it does not, the answer is one of the crossings.
    """
    if not (0 < share <= 1 and start > 0 and tolerance > 0):
        raise ValueError(f"share {share}, start {start}, tolerance {tolerance}: out of limits")
    tries: list[tuple[float, float]] = []

    def holds(factor: float) -> bool:
        tries.append((factor, attained(factor)))
        return tries[-1][1] >= share

    low, high, step = 0.0, 0.0, 0.0
    at = start
    while len(tries) < TRIES_MAX and FACTOR_MIN <= at <= FACTOR_MAX and not (low and high):
        is_low = holds(at)
        step = step or first_step(abs(tries[0][1] - share), tolerance)
        if is_low:
            low, at = at, at * step
        else:
            high, at = at, at / step
        step = step * step if step < 2 else step
    known = dict(tries)
    while low and high and high / low > 1 + tolerance and len(tries) < TRIES_MAX:
        part = (known[low] - share) / (known[low] - known[high])
        middle = low * (high / low) ** min(max(part, INNER), 1 - INNER)
        if holds(middle):
            low = middle
        else:
            high = middle
        known = dict(tries)
    best = known.get(low, 0.0)
    return Found(low, best, tuple(tries))


def first_step(miss: float, tolerance: float) -> float:
    """How far the second try is from the first, by how far that was off the share."""
    return min(max(1 + STEP_PER_MISS * miss, 1 + tolerance), STEP)
