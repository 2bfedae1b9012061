"""From rows to the tensors of one step: checks each row, then lays the good ones end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dopd.attention.base import BatchMeta
from dopd.kv.layout import pages_for
from dopd.types import Row


@dataclass(frozen=True, slots=True)
class RowLimits:
    """What a row's numbers must stay below."""

    vocab_size: int
    max_model_len: int
    page_size: int
    num_pages: int


class Span(NamedTuple):
    """Where a row's tokens lie: positions start .. start + num_tokens of a sequence on `pages`."""

    start: int
    num_tokens: int
    pages: Sequence[int]


def row_fault(row: Row, limits: RowLimits) -> str | None:
    """Why this row cannot be computed, or None.

    An index out of bounds must not fail its neighbours.
    """
    end = row.start + len(row.tokens)
    needed = pages_for(end, limits.page_size)
    if not row.tokens or row.start < 0 or end > limits.max_model_len:
        return f"tokens {row.start} to {end} are none, or not within 0 to {limits.max_model_len}"
    if fault := token_fault(row, limits):
        return fault
    pages = row.pages[:needed]
    if len(pages) < needed:
        return f"{end} tokens need {needed} pages, the row has {len(pages)}"
    if min(pages) < 0 or max(pages) >= limits.num_pages:
        return f"a page is outside the pool of {limits.num_pages}"
    return None


def token_fault(row: Row, limits: RowLimits) -> str | None:
    """What of it is the tokens' fault; they are some."""
    if min(row.tokens) < 0 or max(row.tokens) >= limits.vocab_size:
        return f"a token is outside the vocabulary of {limits.vocab_size}"
    return None


def span_of(row: Row) -> Span:
    """Where a row's tokens lie."""
    return Span(row.start, len(row.tokens), row.pages)


def lay_out(spans: Sequence[Span], page_size: int) -> BatchMeta:
    """Lay rows end to end: all of a step but the tokens themselves.

    Each has passed `row_fault`; decode rows come first.
    """
    num_rows = len(spans)
    starts = np.fromiter((span.start for span in spans), np.int64, num_rows)
    counts = np.fromiter((span.num_tokens for span in spans), np.int64, num_rows)
    ends = starts + counts
    num_pages = -(-ends // page_size)
    qo_indptr, kv_indptr = _indptr(counts), _indptr(num_pages)
    # Only pages that hold tokens after this step.
    pages = [span.pages[:count] for span, count in zip(spans, num_pages.tolist(), strict=True)]
    kv_indices = np.fromiter(chain.from_iterable(pages), np.int32, int(kv_indptr[-1]))
    # Each token's place in its row, from its place in the step.
    positions = np.arange(qo_indptr[-1]) + np.repeat(starts - qo_indptr[:-1], counts)
    page_of_token = np.repeat(kv_indptr[:-1], counts) + positions // page_size
    others = np.flatnonzero(counts != 1)
    return BatchMeta(
        qo_indptr=_int32(qo_indptr),
        kv_indptr=_int32(kv_indptr),
        kv_indices=_int32(kv_indices),
        last_page_len=_int32((ends - 1) % page_size + 1),
        positions=_int32(positions),
        slot_pages=_int32(kv_indices[page_of_token]),
        slot_offsets=_int32(positions % page_size),
        # Rows from the front that have one token: those can be computed as decode rows.
        num_decode_rows=int(others[0]) if len(others) else num_rows,
    )


def _indptr(counts: np.ndarray) -> np.ndarray:
    """Where each of these many begins, and at last where all end."""
    return np.concatenate(([0], np.cumsum(counts)))


def _int32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int32))
