"""From rows to the tensors of one step: checks each row, then lays the good ones end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Batch:
    """One step.

    tokens, positions: [tokens] int64; last: [draws] int64, indices of tokens followed by a draw.
    On the CPU.
    """

    tokens: Tensor
    positions: Tensor
    last: Tensor
    meta: BatchMeta


def row_fault(row: Row, limits: RowLimits) -> str | None:
    """Why this row cannot be computed, or None.

    An index out of bounds must not fail its neighbours.
    """
    end = row.start + len(row.tokens)
    needed = pages_for(end, limits.page_size)
    if not row.tokens or row.start < 0 or end > limits.max_model_len:
        return f"tokens {row.start} to {end} are none, or not within 0 to {limits.max_model_len}"
    if min(row.tokens) < 0 or max(row.tokens) >= limits.vocab_size:
        return f"a token is outside the vocabulary of {limits.vocab_size}"
    pages = row.pages[:needed]
    if len(pages) < needed:
        return f"{end} tokens need {needed} pages, the row has {len(pages)}"
    if min(pages) < 0 or max(pages) >= limits.num_pages:
        return f"a page is outside the pool of {limits.num_pages}"
    return None


def build_batch(rows: Sequence[Row], page_size: int) -> Batch:
    """Lay rows end to end; each has passed `row_fault`, decode rows come first."""
    counts = [len(row.tokens) for row in rows]
    ends = [row.start + count for row, count in zip(rows, counts, strict=True)]
    pages = [row.pages[: pages_for(end, page_size)] for row, end in zip(rows, ends, strict=True)]
    positions = np.concatenate(
        [np.arange(row.start, end) for row, end in zip(rows, ends, strict=True)]
    )
    slot_pages = np.concatenate(
        [
            np.asarray(own)[np.arange(row.start, end) // page_size]
            for row, end, own in zip(rows, ends, pages, strict=True)
        ]
    )
    qo_indptr = np.concatenate(([0], np.cumsum(counts)))
    draws = [i for i, row in enumerate(rows) if row.sampling is not None]
    meta = BatchMeta(
        qo_indptr=_int32(qo_indptr),
        kv_indptr=_int32(np.concatenate(([0], np.cumsum([len(own) for own in pages])))),
        kv_indices=_int32(np.concatenate([np.asarray(own) for own in pages])),
        last_page_len=_int32(np.asarray([(end - 1) % page_size + 1 for end in ends])),
        positions=_int32(positions),
        slot_pages=_int32(slot_pages),
        slot_offsets=_int32(positions % page_size),
        num_decode_rows=_leading_ones(counts),
    )
    tokens = np.concatenate([np.asarray(row.tokens, dtype=np.int64) for row in rows])
    return Batch(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions.astype(np.int64)),
        last=torch.from_numpy((qo_indptr[1:] - 1)[draws].astype(np.int64)),
        meta=meta,
    )


def _leading_ones(counts: list[int]) -> int:
    """Rows from the front that have one token: those can be computed as decode rows."""
    return next((index for index, count in enumerate(counts) if count != 1), len(counts))


def _int32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int32))
