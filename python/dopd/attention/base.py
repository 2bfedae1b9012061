"""The attention interface: plan once a step from CPU metadata, then append and run per layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True, slots=True)
class BatchMeta:
    """One step's rows in FlashInfer's form; decode rows first. All tensors int32 on CPU.

    qo_indptr: [rows + 1] where each row's tokens start in the ragged token axis.
    kv_indptr: [rows + 1] where each row's pages start in kv_indices.
    kv_indices: [sum of pages] page numbers, only pages that hold tokens after this step.
    last_page_len: [rows] tokens on the last page, 1 .. page_size, counting this step's.
    positions: [tokens] position of each token in its sequence.
    slot_pages, slot_offsets: [tokens] where each token's KV is written.
    num_decode_rows: rows 0 .. num_decode_rows have exactly one token.
    """

    qo_indptr: Tensor
    kv_indptr: Tensor
    kv_indices: Tensor
    last_page_len: Tensor
    positions: Tensor
    slot_pages: Tensor
    slot_offsets: Tensor
    num_decode_rows: int


class Attention(Protocol):
    """A back end over one pool [pages, layers, 2, page, kv_heads, head_dim]."""

    def plan(self, meta: BatchMeta) -> None:
        """Prepare one step."""
        ...

    def append(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write this step's KV.

        key, value: [tokens, kv_heads, head_dim], pool's dtype and device.
        """
        ...

    def run(self, layer: int, query: Tensor) -> Tensor:
        """Causal attention of each row over its own pages.

        query: [tokens, heads, head_dim]; returns the same shape. Bottom-right aligned causal mask.
        """
        ...


@runtime_checkable
class GraphAttention(Attention, Protocol):
    """A back end whose decode steps can be captured into CUDA graphs."""

    def fixed(self, batch_size: int) -> Attention:
        """A view for steps of exactly so many decode rows; the same one whenever asked.

        Its `plan` copies the metadata into device buffers that never move, ordered after all that
        was given to the current stream; it is never captured. Its `append` and `run` read nothing
        but those, and may be. Rows that only fill up are real rows of the metadata, on a page that
        nobody owns: last_page_len 1, position 0.
        """
        ...


@runtime_checkable
class CascadeAttention(Attention, Protocol):
    """A back end that computes pages which all decode rows of a step share once for all of them."""

    def shares(self, meta: BatchMeta) -> bool:
        """Whether it does so in this step: then the step is not one for a captured graph."""
        ...
