"""From timed steps to a calibration: least squares over the router's cost model.

The model (`Timings`) is linear but for `max(w + b*n, f*n)`. Which side of it a cell is on is
guessed, the linear rest is fitted with no value below zero, and the guess is made again from the
fit until it holds. Errors are relative: a step of 2 ms counts as much as one of 2 s.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dopd.engine.measure import Cell, Shape
from dopd.engine.timings import Timings
from dopd.errors import DopdError

Array = NDArray[np.float64]

PARTS = (
    "step_prefill_us",
    "step_decode_us",
    "weights_us",
    "memory_us_per_token",
    "compute_us_per_token",
    "attention_us_per_pair",
    "context_us_per_token",
    "batch_us_per_seq",
)
# Steps with more new tokens are first taken to be bound by arithmetic.
COMPUTE_FROM_TOKENS = 256
ROUNDS_MAX = 20
# Of the active-set method, per unknown; it ends after a few.
NNLS_ROUNDS_MAX = 30


@dataclass(frozen=True, slots=True)
class Fit:
    """A calibration and how far it is from each cell: predicted / measured - 1."""

    timings: Timings
    errors: dict[Shape, float]
    penalties: dict[Shape, float]

    @property
    def median_error(self) -> float:
        """Of the absolute errors."""
        return statistics.median(abs(error) for error in self.errors.values())


def fit(name: str, cells: Sequence[Cell]) -> Fit:
    """The calibration of these cells, hand-off left out. Raises DopdError if they are too few."""
    pure = [cell for cell in cells if not cell.shape.work.is_mixed]
    kinds = {bool(cell.shape.chunk) for cell in pure}
    if len(pure) < len(PARTS) or len(kinds) < 2:
        raise DopdError(
            f"{len(pure)} timed steps are too few for a calibration: {len(PARTS)} are needed, of "
            "prompts and of decoding"
        )
    is_compute = [cell.shape.tokens >= COMPUTE_FROM_TOKENS for cell in pure]
    best: tuple[float, Timings] | None = None
    for _ in range(ROUNDS_MAX):
        timings = _solve(name, pure, is_compute)
        error = sum((_predict(timings, cell) / cell.us - 1) ** 2 for cell in pure)
        if best is None or error < best[0]:
            best = error, timings
        again = [_is_compute(timings, cell.shape.tokens) for cell in pure]
        if again == is_compute:
            break
        is_compute = again
    assert best is not None
    timings = best[1]
    penalties = _penalties(cells)
    if penalties:
        penalty = max(0.0, statistics.median(penalties.values()))
        timings = replace(timings, mixed_penalty_ratio=penalty)
    errors = {cell.shape: _predict(timings, cell) / cell.us - 1 for cell in cells}
    return Fit(timings, errors, penalties)


def _penalties(cells: Sequence[Cell]) -> dict[Shape, float]:
    """mixed / (prompt alone + decoding - fixed) - 1 of each mixed cell whose parts were timed.

    `fixed` is the shortest step, whose reading of the weights a mixed step needs once.
    """
    us = {cell.shape: cell.us for cell in cells}
    fixed = min(us.values(), default=0.0)
    penalties = {}
    for shape, took in us.items():
        alone = us.get(Shape(shape.chunk, shape.before))
        decode = us.get(Shape(batch=shape.batch, context=shape.context))
        if shape.work.is_mixed and alone is not None and decode is not None:
            penalties[shape] = took / (alone + decode - fixed) - 1
    return penalties


def _solve(name: str, cells: Sequence[Cell], is_compute: Sequence[bool]) -> Timings:
    rows = []
    for cell, bound in zip(cells, is_compute, strict=True):
        work, tokens = cell.shape.work, cell.shape.tokens
        rows.append(
            [
                bool(work.prefill_tokens),
                not work.prefill_tokens,
                not bound,
                0 if bound else tokens,
                tokens if bound else 0,
                work.prefill_pairs,
                work.decode_context,
                work.decode_seqs,
            ]
        )
    took = np.array([cell.us for cell in cells])
    values = nnls(np.array(rows, dtype=float) / took[:, None], np.ones(len(cells)))
    return Timings(name, **dict(zip(PARTS, values.tolist(), strict=True)))


def nnls(matrix: Array, target: Array) -> Array:
    """argmin ||matrix @ x - target|| with x >= 0 (Lawson and Hanson 1974, chapter 23)."""
    # Columns of like size, or a tolerance means nothing.
    scale = np.linalg.norm(matrix, axis=0)
    scale[scale == 0] = 1.0
    a = matrix / scale
    x = np.zeros(a.shape[1])
    passive = np.zeros(a.shape[1], dtype=bool)
    for _ in range(NNLS_ROUNDS_MAX * a.shape[1]):
        gradient = a.T @ (target - a @ x)
        gradient[passive] = -np.inf
        if passive.all() or gradient.max() <= 1e-9:
            break
        passive[gradient.argmax()] = True
        x = _step_inside(a, target, x, passive)
    found: Array = x / scale
    return found


def _step_inside(a: Array, target: Array, x: Array, passive: NDArray[np.bool_]) -> Array:
    """Least squares over the passive columns; those that would fall below zero leave them."""
    while True:
        solution = np.zeros_like(x)
        solution[passive] = np.linalg.lstsq(a[:, passive], target, rcond=None)[0]
        below = passive & (solution <= 0)
        if not below.any():
            return solution
        share = (x[below] / (x[below] - solution[below])).min()
        x = x + share * (solution - x)
        passive &= x > 1e-12
        x[~passive] = 0.0


def _is_compute(timings: Timings, tokens: int) -> bool:
    memory_us = timings.weights_us + timings.memory_us_per_token * tokens
    return timings.compute_us_per_token * tokens > memory_us


def _predict(timings: Timings, cell: Cell) -> float:
    us = timings.plain_us(cell.shape.work)
    return us * (1 + timings.mixed_penalty_ratio) if cell.shape.work.is_mixed else us
