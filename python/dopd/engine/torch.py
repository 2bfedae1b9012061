"""The real engine: a Llama-family model over the paged pool, one step at a time.

Called by the worker's step loop. The forward pass is `runner`'s, the draw `sampler`'s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from dopd.engine.device_sampler import sample_where_it_lies
from dopd.engine.foresight import Foresight
from dopd.engine.runner import Prepared, Runner
from dopd.engine.sampler import Draw, score
from dopd.engine.stream import Stream
from dopd.engine.timings import Timings
from dopd.engine.torch_batch import RowLimits, row_fault, token_fault
from dopd.engine.torch_cost import StepCost, work_of
from dopd.engine.torch_device import describe, is_sticky
from dopd.errors import DopdError
from dopd.kv.pool import KvPool
from dopd.models.llama import Llama
from dopd.types import KvGeometry, Logprobs, Result, Row, Sampled, SamplingParams, Scored, StepWork

log = logging.getLogger(__name__)

WARM_UP_TOKENS = 64
WARM_UP_CONTEXT = 1024
# Logits of prompt positions that are looked at together: 32 MiB in float32, a few times over.
SCORED_AT_ONCE = 8 << 20


class TorchEngine:
    """`dopd.engine.base.Engine` over torch. Made by `engine/load`; used from one thread."""

    def __init__(
        self,
        weights: Llama,
        pool: KvPool,
        geometry: KvGeometry,
        name: str,
        limits: RowLimits,
        runner: Runner,
        stream: Stream,
    ) -> None:
        self.geometry = geometry
        self.pool = pool
        self.model = name
        self.device = describe(pool.tensor.device)
        self.vocab_size = limits.vocab_size
        self.max_model_len = limits.max_model_len
        self.eos_token_ids = weights.config.eos_token_ids
        self._weights = weights
        self._runner = runner
        self._stream = stream
        self._place = pool.tensor.device
        self._limits = limits
        self._cost = StepCost(Timings(name, weights_us=1.0))
        # Until the warm-up.
        self.timings_json = ""

    def step(self, rows: Sequence[Row]) -> list[Result]:
        """Compute one step (see engine/base.py)."""
        started = time.perf_counter()
        results: list[Result] = [None] * len(rows)
        # Decode rows first, and rows of like length beside each other: attention pads them to one
        # length.
        order = sorted(
            range(len(rows)), key=lambda index: (len(rows[index].tokens) > 1, rows[index].start)
        )
        prepared = self._runner.foreseen([rows[index] for index in order])
        # Where the rows of a prepared step lie was looked at a step ago.
        fault_of = row_fault if prepared is None else token_fault
        good: list[int] = []
        for index in order:
            fault = fault_of(rows[index], self._limits)
            if fault is None:
                good.append(index)
            else:
                prepared = None
                slot = rows[index].slot
                results[index] = DopdError(f"slot {slot} cannot be computed: {fault}")
        if good:
            drawn = self._compute_each([rows[index] for index in good], prepared)
            for index, result in zip(good, drawn, strict=True):
                results[index] = result
            self._cost.learn(work_of(rows), (time.perf_counter() - started) * 1e6)
        return results

    def cost_us(self, work: StepWork) -> int:
        """See `Engine.cost_us`: from the warm-up and the steps since."""
        return self._cost.expect_us(work)

    @property
    def foresight(self) -> Foresight:
        """How often the host's work for a decode step was done ahead."""
        return self._runner.foresight

    def warm_up(self, timings: Timings | None = None) -> None:
        """Run each kind of step twice, first for the caches and then for the clock: of two decode
        steps the second follows the first, so it is planned ahead as when it serves.

        Before any page is owned. timings: those of the clock do not count then.
        """
        fitting = min(self.max_model_len, self.pool.num_pages * self.pool.page_size)
        many = min(WARM_UP_TOKENS, fitting)
        context = min(WARM_UP_CONTEXT, fitting - many)
        one_us, many_us, long_us, deep_us = (
            self._time_us(start, num_tokens)
            for start, num_tokens in ((0, 1), (0, many), (context, 1), (context, many))
        )
        measured = StepCost.fit(
            self.model,
            one=one_us,
            many=many_us,
            many_tokens=many,
            long=long_us,
            deep=deep_us,
            context=context,
        )
        self.foresight.forget()
        self._cost = StepCost(timings) if timings else measured
        self.timings_json = self._cost.timings.to_json()
        # Pages must be handed out clean; warming up wrote only here.
        page_size = self.pool.page_size
        for start in (0, context):
            self.pool.tensor[start // page_size : (start + many) // page_size + 1].zero_()
        self._stream.synchronise()

    def _time_us(self, start: int, num_tokens: int) -> float:
        pages = list(range(self.pool.num_pages))
        row = Row(0, [0] * num_tokens, start, pages, SamplingParams(temperature=0.0), 0)
        self._compute([row])
        if num_tokens == 1 and row_fault(replace(row, start=start + 1), self._limits) is None:
            row.start += 1
        started = time.perf_counter()
        self._compute([row], self._runner.foreseen([row]))
        return (time.perf_counter() - started) * 1e6

    def _compute_each(self, rows: Sequence[Row], prepared: Prepared | None = None) -> list[Result]:
        """Compute together; if that fails, one by one: a row can fail only itself.

        Writing a row's KV twice writes the same. Raises if the device is unusable.
        """
        try:
            return self._compute(rows, prepared)
        except Exception as error:
            if is_sticky(error):
                raise
            # What it gave to the device may still write: pages of a row that failed are granted to
            # a peer soon, whose copies are on another stream.
            self._stream.synchronise()
            if len(rows) == 1:
                return [error]
            log.warning("a step of %d rows failed, one by one now: %s", len(rows), error)
        return [result for row in rows for result in self._compute_each([row])]

    @torch.inference_mode()
    def _compute(self, rows: Sequence[Row], prepared: Prepared | None = None) -> list[Result]:
        """Forward and draw; rows have passed `row_fault`. All is done and written at the end."""
        draws = [
            Draw(row.sampling, row.pos, row.forbidden, row.history)
            for row in rows
            if row.sampling is not None
        ]
        # A copy to a device waits for what it computes: this one must come first.
        last = self._last(rows, len(draws))
        hidden = self._runner.hidden(rows, prepared)
        drawn: Iterator[Sampled | Exception] = iter(())
        if draws:
            logits = self._weights.logits(hidden if last is None else hidden[last])
            self._runner.look_ahead(rows)
            drawn = iter(sample_where_it_lies(logits, draws, self._weights.kernels))
        results: list[Result] = []
        first = 0
        for row in rows:
            result = None if row.sampling is None else next(drawn)
            if row.targets is None or isinstance(result, Exception):
                results.append(result)
            else:
                told = hidden[first : first + len(row.targets)]
                results.append(self._scored(told, row.targets, row.num_top, result))
            first += len(row.tokens)
        # Pages are told as written, and times as taken, also where nothing was drawn.
        self._stream.synchronise()
        return results

    def _last(self, rows: Sequence[Row], num_draws: int) -> Tensor | None:
        """Which tokens of the step a draw follows; None: each."""
        ends = list(accumulate(len(row.tokens) for row in rows))
        if ends[-1] == num_draws:
            return None
        drawn = [end - 1 for end, row in zip(ends, rows, strict=True) if row.sampling is not None]
        return torch.tensor(drawn, dtype=torch.int64).to(self._place)

    def _scored(
        self, hidden: Tensor, targets: list[int], num_top: int, drawn: Sampled | None
    ) -> Result:
        try:
            return Scored(self._score(hidden, targets, num_top), drawn)
        except Exception as error:
            if is_sticky(error):
                raise
            return error

    def _score(self, hidden: Tensor, targets: list[int], num_top: int) -> list[Logprobs]:
        """Log probabilities of the tokens that follow these hidden states.

        In slices: the logits of a long chunk would take gigabytes.
        """
        size = max(1, SCORED_AT_ONCE // self.vocab_size)
        return [
            one
            for start in range(0, len(targets), size)
            for one in score(
                self._weights.logits(hidden[start : start + size]),
                targets[start : start + size],
                num_top,
            )
        ]
