"""Which pages the rows of a decode step have in common, and what is left without them; pure.

Pages are shared where the prefix cache found a prompt's beginning: rows then name the same pages.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dopd.attention.base import BatchMeta

# Below them a second kernel and a merge cost more than reading less brings: vLLM's rule, in
# `use_cascade_attention` of its vllm/v1/attention/backends/flash_attn.py.
MIN_ROWS, MIN_TOKENS = 8, 256


@dataclass(frozen=True, slots=True)
class Split:
    """The decode rows of a step, whose first `num_shared` pages are the same, and full.

    indptr, indices: each row's other pages, at least one, as in `BatchMeta`.
    """

    num_shared: int
    indptr: Tensor
    indices: Tensor


def split(meta: BatchMeta, page_size: int) -> Split | None:
    """The decode rows as shared pages and the rest; None if that is not worth it."""
    count = num_shared(meta, page_size)
    if not count:
        return None
    rows = meta.num_decode_rows
    indptr = meta.kv_indptr[: rows + 1]
    place = torch.arange(int(indptr[-1]), dtype=torch.int32)
    place -= torch.repeat_interleave(indptr[:-1], indptr.diff())
    return Split(
        count,
        indptr - count * torch.arange(rows + 1, dtype=torch.int32),
        meta.kv_indices[: len(place)][place >= count],
    )


def num_shared(meta: BatchMeta, page_size: int) -> int:
    """How many first pages all decode rows have in common; 0 if too few, or too few rows.

    A row's last page, which this step writes to, is its own: the others are full.
    """
    rows = meta.num_decode_rows
    least = -(-MIN_TOKENS // page_size)
    indptr = meta.kv_indptr[: rows + 1]
    most = int(indptr.diff().min()) - 1 if rows >= MIN_ROWS else 0
    if most < least:
        return 0
    starts, indices = indptr[:-1].long(), meta.kv_indices
    # Most rows that share nothing differ in the first page.
    if bool((indices[starts] != indices[0]).any()):
        return 0
    table = indices[starts.unsqueeze(1) + torch.arange(most)]
    is_same = (table == table[0]).all(dim=0)
    count = most if bool(is_same.all()) else int((~is_same).nonzero()[0])
    return count if count >= least else 0
