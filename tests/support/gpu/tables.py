"""Attention that can be captured, as simple as can be: a double of a GPU back end."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from dopd.attention.base import Attention, BatchMeta
from dopd.attention.torch import TorchAttention


class TableAttention(TorchAttention):
    """`dopd.attention.base.GraphAttention`: torch's back end, and views that read only tensors."""

    def __init__(self, pool: Tensor, max_row_pages: int) -> None:
        super().__init__(pool)
        self.views: dict[int, TableView] = {}
        self._whole = pool
        self._max_row_pages = max_row_pages

    def fixed(self, batch_size: int) -> Attention:
        """See `GraphAttention.fixed`."""
        if batch_size not in self.views:
            self.views[batch_size] = TableView(self._whole, batch_size, self._max_row_pages)
        return self.views[batch_size]


class TableView:
    """Decode rows by a table of pages. plans: how often `plan` was called."""

    def __init__(self, pool: Tensor, batch_size: int, max_row_pages: int) -> None:
        self.plans = 0
        self._pool = pool
        where = {"dtype": torch.int64, "device": pool.device}
        self._table = torch.zeros((batch_size, max_row_pages), **where)
        self._lengths = torch.zeros(batch_size, **where)
        self._slots = torch.zeros((2, batch_size), **where)
        # [slots]: each slot's place in its row.
        self._places = torch.arange(max_row_pages * pool.shape[3], device=pool.device)

    def plan(self, meta: BatchMeta) -> None:
        """Copy a step's metadata to where it stays."""
        self.plans += 1
        assert meta.num_decode_rows == len(meta.last_page_len) == len(self._lengths)
        starts = meta.kv_indptr.tolist()
        table = torch.zeros(self._table.shape, dtype=torch.int64)
        for row, (start, end) in enumerate(pairwise(starts)):
            table[row, : end - start] = meta.kv_indices[start:end]
        page_size = self._pool.shape[3]
        lengths = (meta.kv_indptr.diff() - 1) * page_size + meta.last_page_len
        self._table.copy_(table, non_blocking=True)
        self._lengths.copy_(lengths, non_blocking=True)
        self._slots.copy_(torch.stack((meta.slot_pages, meta.slot_offsets)), non_blocking=True)

    def append(self, layer: int, key: Tensor, value: Tensor) -> None:
        """See `Attention.append`."""
        pages, offsets = self._slots
        self._pool[:, layer, 0].index_put_((pages, offsets), key)
        self._pool[:, layer, 1].index_put_((pages, offsets), value)

    def run(self, layer: int, query: Tensor) -> Tensor:
        """See `Attention.run`."""
        rows, heads, head_dim = query.shape
        gathered = self._pool[:, layer][self._table]
        # [rows, pages, 2, page, kv_heads, head_dim] to [2, rows, kv_heads, slots, head_dim].
        both = gathered.permute(2, 0, 4, 1, 3, 5).flatten(3, 4)
        is_there = self._places < self._lengths.unsqueeze(1)
        both = torch.where(is_there[None, :, None, :, None], both, 0.0)
        keys, values = both.repeat_interleave(heads // both.shape[2], dim=2)
        scores = (keys @ query.unsqueeze(-1)).squeeze(-1) * head_dim**-0.5
        scores = scores.masked_fill(~is_there.unsqueeze(1), float("-inf"))
        weights = torch.softmax(scores, dim=-1)
        return (weights.unsqueeze(2) @ values).reshape(rows, heads, head_dim)
