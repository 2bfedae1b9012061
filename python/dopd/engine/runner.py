"""One step's way through the model: where its rows lie, then the forward pass, as a graph or not.

While a device computes a step, the host prepares the next one on the guess that the same rows go on
by one token: what was guessed is used only if it is exactly what came. Used by `engine/torch`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dopd.attention.base import Attention, CascadeAttention
from dopd.engine.foresight import Foresight
from dopd.engine.graphs import DecodeGraphs, Model
from dopd.engine.torch_batch import RowLimits, Span, lay_out, span_of
from dopd.engine.torch_device import is_sticky
from dopd.kv.layout import pages_for
from dopd.types import Row

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step that the attention has planned last.

    size: of the graph that computes it; None: none does. positions: [tokens].
    """

    spans: list[Span]
    size: int | None
    positions: Tensor

    def is_of(self, rows: Sequence[Row]) -> bool:
        """Whether exactly these rows, in this order, were planned; all have one token then."""
        return len(rows) == len(self.spans) and all(
            row.start == start and len(row.tokens) == 1 and row.pages[: len(pages)] == pages
            for row, (start, _, pages) in zip(rows, self.spans, strict=True)
        )


class Runner:
    """The forward pass of steps, one after the other."""

    def __init__(
        self,
        model: Model,
        attention: Attention,
        place: torch.device,
        limits: RowLimits,
        graphs: DecodeGraphs | None = None,
        *,
        looks_ahead: bool = False,
    ) -> None:
        """looks_ahead: the device computes while the host goes on, so there is time to use."""
        self.foresight = Foresight()
        self._model = model
        self._attention = attention
        self._cascade = attention if isinstance(attention, CascadeAttention) else None
        self._place = place
        self._limits = limits
        self._graphs = graphs
        self._looks_ahead = looks_ahead
        self._guess: Prepared | None = None

    def foreseen(self, rows: Sequence[Row]) -> Prepared | None:
        """What was prepared for a step of these rows, if anything was; for `hidden`."""
        guess = self._guess
        if guess is None:
            return None
        is_hit = guess.is_of(rows)
        self.foresight.count(is_hit=is_hit)
        return guess if is_hit else None

    def hidden(self, rows: Sequence[Row], prepared: Prepared | None = None) -> Tensor:
        """Hidden states of a step: [tokens, hidden], rows end to end; valid until the next step.

        The device may still be computing them. prepared: from `foreseen`, called with the same rows
        and with no other step in between.
        """
        # Whatever comes now is planned, and the plan of a guess is gone with it.
        self._guess = None
        step = prepared or self._prepare([span_of(row) for row in rows])
        tokens = [token for row in rows for token in row.tokens]
        if self._graphs is not None and step.size is not None:
            return self._graphs.replay(step.size, tokens, step.positions)
        ids = torch.tensor(tokens, dtype=torch.int64).to(self._place)
        return self._model.forward(ids, step.positions.long().to(self._place), self._attention)

    def look_ahead(self, rows: Sequence[Row]) -> None:
        """Prepare the step in which each of these rows computes its next token.

        Called when the step of these rows is under way. Without a guess if one of them computes
        more than a token now, ends with this one, or does not have the page yet.
        """
        if not self._looks_ahead or any(len(row.tokens) != 1 for row in rows):
            return
        spans = []
        for row in rows:
            start = row.start + 1
            pages = row.pages[: pages_for(start + 1, self._limits.page_size)]
            if start >= self._limits.max_model_len or start >= len(pages) * self._limits.page_size:
                return
            # The others were looked at when they were the last.
            if not 0 <= pages[-1] < self._limits.num_pages:
                return
            spans.append(Span(start, 1, pages))
        try:
            self._guess = self._prepare(spans)
        except Exception as error:
            if is_sticky(error):
                raise
            # The step itself plans again, and its rows have the error.
            log.warning("a step of %d rows could not be prepared ahead: %s", len(rows), error)

    def _prepare(self, spans: list[Span]) -> Prepared:
        graphs, size = self._graphs, self._graph_size(spans)
        if graphs is not None and size is not None:
            return Prepared(spans, size, graphs.plan(size, spans))
        meta = lay_out(spans, self._limits.page_size)
        self._attention.plan(meta)
        return Prepared(spans, None, meta.positions)

    def _graph_size(self, spans: list[Span]) -> int | None:
        """Of the graph that computes these rows; None: they are computed without one."""
        if self._graphs is None or any(span.num_tokens != 1 for span in spans):
            return None
        size = self._graphs.fit(len(spans))
        if size is not None and self._cascade is not None:
            # Pages that all rows share are read once, which no graph does.
            if self._cascade.shares(lay_out(spans, self._limits.page_size)):
                return None
        return size
