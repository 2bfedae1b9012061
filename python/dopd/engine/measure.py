"""Steps of an engine, timed: prompts by length, decoding by batch and context, both in one step.

`fit` makes a calibration of them. Called by `dopd bench engine` and by benches. A step is timed
from the call until its results are on the CPU; the cells take turns, so that a drift of the machine
favours none.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dopd.engine import foresight
from dopd.engine.base import Engine
from dopd.engine.foresight import Foresight
from dopd.engine.torch_cost import work_of
from dopd.errors import DopdError
from dopd.kv.layout import pages_for
from dopd.types import Row, SamplingParams, StepWork

GREEDY = SamplingParams(temperature=0.0)
# Ids below this exist in every vocabulary that we know, and are no special tokens in most.
TOKEN_MIN, TOKEN_RANGE = 16, 200


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of step: `chunk` tokens of a prompt of which `before` were computed (0: no prompt),
    and `batch` sequences that decode with `context` tokens each."""

    chunk: int = 0
    before: int = 0
    batch: int = 0
    context: int = 0

    @property
    def work(self) -> StepWork:
        """In the terms of the cost model."""
        # A sequence that decodes attends to its new token, too.
        decode = StepWork(0, 0, self.batch, self.batch * (self.context + 1))
        return decode.with_prompts([(self.chunk, self.before)], self.chunk)

    @property
    def tokens(self) -> int:
        """New tokens of the step."""
        return self.chunk + self.batch

    def __str__(self) -> str:
        """For a table."""
        parts = []
        if self.batch:
            parts.append(f"decode {self.batch} x {self.context}")
        if self.chunk:
            parts.append(f"prefill {self.chunk}" + (f" after {self.before}" if self.before else ""))
        return " + ".join(parts)


@dataclass(frozen=True, slots=True)
class Cell:
    """What steps of one shape took, in microseconds: median and quartiles of `count` steps."""

    shape: Shape
    count: int
    us: float
    q1_us: float
    q3_us: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Which shapes to time."""

    chunks: Sequence[int] = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
    # Of a prompt's second part: (tokens, tokens before).
    later: Sequence[tuple[int, int]] = ((64, 1024), (512, 2048), (1024, 4096), (2048, 6144))
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128)
    contexts: Sequence[int] = (128, 512, 2048, 8192)
    mixed: Sequence[tuple[int, int, int]] = tuple(
        (batch, 512, chunk) for batch in (1, 8, 32, 64) for chunk in (128, 512, 2048)
    )

    def shapes(self) -> Iterator[Shape]:
        """All, each once; of a mixed one its parts come before it."""
        seen = set()
        for shape in self._all():
            if shape not in seen:
                seen.add(shape)
                yield shape

    def _all(self) -> Iterator[Shape]:
        for chunk in self.chunks:
            yield Shape(chunk)
        for chunk, before in self.later:
            yield Shape(chunk, before)
        for batch in self.batches:
            for context in self.contexts:
                yield Shape(batch=batch, context=context)
        for batch, context, chunk in self.mixed:
            yield Shape(chunk)
            yield Shape(batch=batch, context=context)
            yield Shape(chunk, 0, batch, context)


class Steps:
    """Steps of one engine that serves nobody else: all pages are ours."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.perf_counter) -> None:
        self._engine = engine
        self._clock = clock
        # Of the decode steps that were timed; without those of an engine that does not look ahead.
        self.ahead = Foresight()

    def misfit(self, shape: Shape) -> str | None:
        """Why this engine cannot take such a step, or None."""
        longest = max(shape.before + shape.chunk, shape.context + 1 if shape.batch else 0)
        if longest > self._engine.max_model_len:
            return f"{longest} tokens, the longest sequence has {self._engine.max_model_len}"
        pages = self._prompt_pages(shape) + shape.batch * self._own_pages(shape)
        if pages > self._engine.pool.num_pages:
            return f"{pages} pages, the pool has {self._engine.pool.num_pages}"
        return None

    def rows(self, shape: Shape, *, is_earlier: bool = False) -> list[Row]:
        """The rows of such a step, decode rows first, each with pages of its own.

        is_earlier: of the step before it, if it only decodes.
        """
        each, start = self._own_pages(shape), shape.context - is_earlier
        rows = [
            Row(i, [self._token(i)], start, _pages(i * each, each), GREEDY, 1)
            for i in range(shape.batch)
        ]
        if shape.chunk:
            pages = _pages(shape.batch * each, self._prompt_pages(shape))
            tokens = [self._token(i) for i in range(shape.chunk)]
            rows.append(Row(shape.batch, tokens, shape.before, pages, GREEDY, 0))
        assert is_earlier or work_of(rows) == shape.work
        return rows

    def shape_us(self, shape: Shape) -> float:
        """Time of a step of this shape. Raises DopdError if a row failed.

        One that only decodes comes after its own predecessor, as in a server: engines prepare the
        next step while one is computed.
        """
        if shape.chunk or not shape.context:
            return self.us(self.rows(shape))
        self.us(self.rows(shape, is_earlier=True))
        of_engine = foresight.of(self._engine) or Foresight()
        hits, misses = of_engine.hits, of_engine.misses
        took = self.us(self.rows(shape))
        self.ahead.hits += of_engine.hits - hits
        self.ahead.misses += of_engine.misses - misses
        return took

    def us(self, rows: Sequence[Row]) -> float:
        """Time of one step. Raises DopdError if a row failed."""
        begun = self._clock()
        results = self._engine.step(rows)
        took = self._clock() - begun
        for result in results:
            if isinstance(result, Exception):
                raise DopdError(f"a step that was timed failed: {result}") from result
        return 1e6 * took

    def _token(self, index: int) -> int:
        return TOKEN_MIN + index % min(TOKEN_RANGE, self._engine.vocab_size - TOKEN_MIN)

    def _own_pages(self, shape: Shape) -> int:
        return pages_for(shape.context + 1, self._engine.geometry.page_size)

    def _prompt_pages(self, shape: Shape) -> int:
        return pages_for(shape.before + shape.chunk, self._engine.geometry.page_size)


def measure(
    steps: Steps,
    shapes: Sequence[Shape],
    *,
    repeat: int,
    step_us_max: float,
    on_step: Callable[[float, str], None] = lambda share, what: None,
) -> tuple[list[Cell], dict[Shape, str]]:
    """Time every shape `repeat` times, in turns, after once for the caches.

    step_us_max: a shape that took longer, or has more tokens than one that did, is left out.
    on_step gets the share that is done and the shape under way. Returns the cells and why others
    were left out.
    """
    left_out: dict[Shape, str] = {}
    taken: dict[Shape, list[float]] = {}
    slow: Shape | None = None
    for index, shape in enumerate(shapes):
        on_step(index / len(shapes) / (repeat + 1), str(shape))
        if reason := steps.misfit(shape):
            left_out[shape] = reason
        elif slow and _has_more(shape, slow):
            left_out[shape] = f"more work than {slow}, which took over {step_us_max / 1e6:g} s"
        elif steps.shape_us(shape) > step_us_max:
            slow = shape
            left_out[shape] = f"took over {step_us_max / 1e6:g} s"
        else:
            taken[shape] = []
    for turn in range(repeat):
        order = list(taken) if turn % 2 else list(reversed(taken))
        for index, shape in enumerate(order):
            share = (turn + 1 + index / len(order)) / (repeat + 1)
            on_step(share, str(shape))
            taken[shape].append(steps.shape_us(shape))
    on_step(1.0, "")
    return [_cell(shape, took) for shape, took in taken.items()], left_out


def _has_more(shape: Shape, than: Shape) -> bool:
    """In every part of its work."""
    pairs = zip(shape.work, than.work, strict=True)
    return all(one >= other for one, other in pairs)


def _cell(shape: Shape, took: list[float]) -> Cell:
    if len(took) < 2:
        return Cell(shape, len(took), took[0], took[0], took[0])
    low, middle, high = statistics.quantiles(took, n=4, method="inclusive")
    return Cell(shape, len(took), middle, low, high)


def _pages(first: int, count: int) -> list[int]:
    return list(range(first, first + count))
