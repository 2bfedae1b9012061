"""Attention in plain torch: the oracle of every other back end, and the path of CPU workers.

Decode rows are gathered from their pages into padded tables, a table for rows of like length, and
computed together. Prefill rows are computed one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dopd.attention.base import BatchMeta

# A padded table holds at most this many times the pages that its rows have.
MAX_PADDING = 1.25
# Tokens gathered at once for decode rows. Larger tables leave the processor's cache between the
# copy and its use; smaller ones cost more calls (2048 tokens of SmolLM2 in float32 are 3 MiB).
MAX_TABLE_TOKENS = 2048
# Rows of a chunk that follow earlier context need an explicit mask; it is made for this many
# queries at a time, so that it stays small (256 x 131072 floats are 128 MiB) and the part above
# the diagonal is hardly computed.
QUERY_TILE = 256


class TorchAttention:
    """`dopd.attention.base.Attention` over a pool on any device.

    Fast if decode rows of like length are neighbours; right in any order.
    """

    def __init__(self, pool: Tensor) -> None:
        """pool: [pages, layers, 2, page, kv_heads, head_dim], contiguous; it is written to."""
        _, num_layers, _, page_size, num_kv_heads, head_dim = pool.shape
        self._page_size = page_size
        self._heads = (num_kv_heads, head_dim)
        self._pool = pool
        # Two flat views of the same memory. One row is the keys, or the values, of a page or of one
        # token in a layer; index_select and index_copy_ over rows of a contiguous matrix are plain
        # memory copies. Layers of a page are `2` rows apart, pages `2 * layers`.
        self._by_page = pool.view(-1, page_size * num_kv_heads * head_dim)
        self._by_token = pool.view(-1, num_kv_heads * head_dim)
        self._page_stride = 2 * num_layers
        self._layer_rows = 2 * torch.arange(num_layers).unsqueeze(1)
        # Where gathered pages go; grows to the longest row seen. Fresh memory each time would be
        # mapped and zeroed by the system each time.
        self._scratch = self._by_page.new_empty((0, self._by_page.shape[1]))
        self._slots = torch.empty((2, 0, 0), dtype=torch.int64)
        self._decodes: list[_DecodeTable] = []
        self._prefills: list[_PrefillRow] = []

    def plan(self, meta: BatchMeta) -> None:
        """Prepare one step; clears the free tail of pages that this step begins to fill."""
        first_layer = meta.slot_pages.long() * self._page_stride
        by_layer = (first_layer + self._layer_rows) * self._page_size + meta.slot_offsets
        # Values of a layer follow its keys, one page further on.
        slots = torch.stack((by_layer, by_layer + self._page_size))
        self._slots = slots.to(self._pool.device)
        rows = _rows(meta, self._page_size)
        self._clear_fresh_tails(rows)
        decodes, prefills = rows[: meta.num_decode_rows], rows[meta.num_decode_rows :]
        most_pages = max(1, MAX_TABLE_TOKENS // self._page_size)
        self._decodes = [self._decode_table(group) for group in _groups(decodes, most_pages)]
        self._prefills = [self._prefill_row(row) for row in prefills]
        widths = [table.index.shape[1] for table in self._decodes]
        needed = max(widths + [row.index.shape[1] for row in self._prefills])
        if needed > len(self._scratch):
            self._scratch = self._by_page.new_empty((needed, self._by_page.shape[1]))

    def append(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write this step's keys and values into their pages."""
        self._by_token.index_copy_(0, self._slots[0, layer], key.reshape(len(key), -1))
        self._by_token.index_copy_(0, self._slots[1, layer], value.reshape(len(value), -1))

    def run(self, layer: int, query: Tensor) -> Tensor:
        """Attention of each row over its own pages; query and result: [tokens, heads, head_dim]."""
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for table in self._decodes:
            tokens = slice(table.start, table.end)
            out[tokens] = self._run_decode(layer, query[tokens], table)
        for row in self._prefills:
            tokens = slice(row.start, row.end)
            out[tokens] = self._run_prefill(layer, query[tokens], row)
        return out

    def _run_decode(self, layer: int, query: Tensor, table: _DecodeTable) -> Tensor:
        """query: [rows, heads, head_dim]; returns the same.

        The heads that share a KV head are the query axis.
        """
        num_kv_heads, head_dim = self._heads
        num_rows, num_heads, _ = query.shape
        key, value = self._gather(table.index[layer], num_rows)
        grouped = query.reshape(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
        out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=table.mask)
        return out.reshape(num_rows, num_heads, head_dim)

    def _run_prefill(self, layer: int, query: Tensor, row: _PrefillRow) -> Tensor:
        """query: [tokens of the row, heads, head_dim]; returns the same."""
        key, value = self._gather(row.index[layer], 1)
        queries = query.transpose(0, 1).unsqueeze(0)
        outs = [
            F.scaled_dot_product_attention(
                queries[:, :, tile.start : tile.end],
                key[:, :, : tile.context],
                value[:, :, : tile.context],
                attn_mask=tile.mask,
                is_causal=tile.mask is None,
                enable_gqa=True,
            )
            for tile in row.tiles
        ]
        out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)
        return out.squeeze(0).transpose(0, 1)

    def _gather(self, index: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
        """Copy pages' keys and values to the scratch memory: two [rows, kv_heads, slots, head_dim].

        Valid until the next call.
        """
        gathered = torch.index_select(self._by_page, 0, index, out=self._scratch[: len(index)])
        key, value = gathered.view(2, num_rows, -1, *self._heads).transpose(2, 3)
        return key, value

    def _decode_table(self, group: list[_Row]) -> _DecodeTable:
        """Pad decode rows to the longest of them with pages of their own; mask the padding."""
        width = max(len(row.pages) for row in group)
        pages = [torch.cat((r.pages, r.pages[:1].expand(width - len(r.pages)))) for r in group]
        lengths = torch.tensor([row.context for row in group])
        is_past = torch.arange(width * self._page_size) >= lengths.unsqueeze(1)
        mask = torch.zeros(is_past.shape, dtype=self._pool.dtype)
        mask.masked_fill_(is_past, float("-inf"))
        return _DecodeTable(
            start=group[0].start,
            end=group[-1].end,
            index=self._index(torch.cat(pages)),
            mask=mask[:, None, None].to(self._pool.device) if bool(is_past.any()) else None,
        )

    def _prefill_row(self, row: _Row) -> _PrefillRow:
        num_tokens = row.end - row.start
        before = row.context - num_tokens
        tiles = []
        if before == 0:
            # Nothing came before, so torch's own causal mask, which is aligned top left, is ours
            # too.
            tiles.append(_Tile(0, num_tokens, num_tokens, None))
        else:
            for start in range(0, num_tokens, QUERY_TILE):
                end = min(start + QUERY_TILE, num_tokens)
                mask = self._mask(before + start, before + end)
                tiles.append(_Tile(start, end, before + end, mask))
        return _PrefillRow(row.start, row.end, self._index(row.pages), tiles)

    def _mask(self, start: int, end: int) -> Tensor:
        """Mask of queries [start, end) over keys [0, end): 0 for a key that is seen, else -inf."""
        mask = torch.full((end - start, end), float("-inf"), dtype=self._pool.dtype)
        return mask.triu_(diagonal=start + 1).to(self._pool.device)

    def _index(self, pages: Tensor) -> Tensor:
        """Rows of `_by_page` with these pages' keys, then their values: [layers, 2 * pages]."""
        keys = pages.long() * self._page_stride + self._layer_rows
        return torch.cat((keys, keys + 1), dim=1).to(self._pool.device)

    def _clear_fresh_tails(self, rows: list[_Row]) -> None:
        """Zero the last page of each row that begins to use it in this step.

        A masked slot has weight 0, but 0 * NaN is NaN: what an earlier owner left must not reach
        this sequence.
        """
        for row in rows:
            first_slot = (len(row.pages) - 1) * self._page_size
            if first_slot >= row.context - (row.end - row.start):
                self._pool[row.pages[-1]].zero_()


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the batch: its tokens [start, end) on the ragged axis, pages, length afterwards."""

    start: int
    end: int
    pages: Tensor
    context: int


@dataclass(frozen=True, slots=True)
class _DecodeTable:
    """Decode rows [start, end), computed together.

    index: [layers, 2 * rows * width], see `_index`.
    """

    start: int
    end: int
    index: Tensor
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class _Tile:
    """Queries [start, end) of a prefill row over its first `context` keys; no mask: causal."""

    start: int
    end: int
    context: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class _PrefillRow:
    """A prefill row: tokens start .. end of the step. index: [layers, 2 * pages], see `_index`."""

    start: int
    end: int
    index: Tensor
    tiles: list[_Tile]


def _rows(meta: BatchMeta, page_size: int) -> list[_Row]:
    starts, page_starts = meta.qo_indptr.tolist(), meta.kv_indptr.tolist()
    rows = []
    for index, last_page_len in enumerate(meta.last_page_len.tolist()):
        pages = meta.kv_indices[page_starts[index] : page_starts[index + 1]]
        context = (len(pages) - 1) * page_size + last_page_len
        rows.append(_Row(starts[index], starts[index + 1], pages, context))
    return rows


def _groups(rows: list[_Row], most_pages: int) -> list[list[_Row]]:
    """Neighbours that share a table: of like length, and few enough pages (one row always fits)."""
    groups: list[list[_Row]] = []
    held = width = 0
    for row in rows:
        count = len(row.pages)
        table = max(width, count) * (len(groups[-1]) + 1) if groups else 0
        if groups and table <= min(most_pages, MAX_PADDING * (held + count)):
            groups[-1].append(row)
            held, width = held + count, max(width, count)
        else:
            groups.append([row])
            held = width = count
    return groups
