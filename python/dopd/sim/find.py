"""The highest rate that a share of requests survives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TOLERANCE = 0.03
# The bracket widens by this at first, then by its square, and so on.
STEP = 1.15
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

    Walks up or down from `start` in growing steps, then halves the bracket (in logarithms). Takes
    attainment to fall with the rate; where it does not, the answer is one of the crossings.
    """
    if not (0 < share <= 1 and start > 0 and tolerance > 0):
        raise ValueError(f"share {share}, start {start}, tolerance {tolerance}: out of limits")
    tries: list[tuple[float, float]] = []

    def holds(factor: float) -> bool:
        tries.append((factor, attained(factor)))
        return tries[-1][1] >= share

    low, high, step = 0.0, 0.0, STEP
    at = start
    while len(tries) < TRIES_MAX and FACTOR_MIN <= at <= FACTOR_MAX and not (low and high):
        if holds(at):
            low, at = at, at * step
        else:
            high, at = at, at / step
        step = step * step if step < 2 else step
    while low and high and high / low > 1 + tolerance and len(tries) < TRIES_MAX:
        middle = (low * high) ** 0.5
        if holds(middle):
            low = middle
        else:
            high = middle
    best = dict(tries).get(low, 0.0)
    return Found(low, best, tuple(tries))
