"""Which models FlashInfer has kernels for, and which of them it takes; pure, no FlashInfer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dopd.errors import ConfigError

DTYPES = (torch.bfloat16, torch.float16)
HEAD_DIMS = (64, 128, 256)
# FlashInfer's decode kernel without tensor cores is compiled for these numbers of query heads per
# KV head. From TENSOR_CORE_GROUP on the tensor cores win: a KV head that is read once is then
# multiplied so often that plain arithmetic, not memory, sets the time.
CUDA_CORE_GROUPS = (1, 2, 3, 4, 6, 8)
TENSOR_CORE_GROUP = 4
# The workspace holds partial results of rows that several thread blocks share. FlashInfer's
# recommendation, and what its planner asks for at most (`workspace_bytes`).
MIN_WORKSPACE_BYTES = 128 << 20
BLOCKS_PER_SM = 2
PREFILL_TILE = 128
THREADS_PER_BLOCK = 1024
# Before it GPUs have too little shared memory for the smallest tile.
AMPERE = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """What a plan is told of the model."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    dtype: torch.dtype

    @classmethod
    def of(cls, pool: Tensor, num_heads: int) -> Shape:
        """pool: [pages, layers, 2, page, kv_heads, head_dim]."""
        _, _, _, page_size, num_kv_heads, head_dim = pool.shape
        return cls(num_heads, num_kv_heads, head_dim, page_size, pool.dtype)

    def check(self) -> None:
        """Raise ConfigError if there are no kernels for this."""
        if self.dtype not in DTYPES:
            raise ConfigError(
                f"attention flashinfer cannot compute in {_name(self.dtype)}; give --dtype "
                f"{' or '.join(map(_name, DTYPES))}, or --attention torch"
            )
        if self.head_dim not in HEAD_DIMS:
            raise ConfigError(
                f"attention flashinfer has no kernels for heads of {self.head_dim}, only of "
                f"{', '.join(map(str, HEAD_DIMS))}; give --attention torch"
            )

    def check_merge(self) -> None:
        """Raise ConfigError if what a cascade found in two parts cannot be merged.

        In cascade.cuh a thread block has threads for all query heads of a token, each thread 16
        bytes of a head.
        """
        most = THREADS_PER_BLOCK // (self.head_dim * self.dtype.itemsize // 16)
        if self.num_heads > most:
            raise ConfigError(
                f"cascade-attention merges at most {most} heads of {self.head_dim}, the model has "
                f"{self.num_heads}; leave it out"
            )

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def wants_tensor_cores(self) -> bool:
        """Whether decode rows are computed by the kernel that uses tensor cores."""
        return self.group >= TENSOR_CORE_GROUP or self.group not in CUDA_CORE_GROUPS

    def workspace_bytes(self, max_rows: int, num_sms: int, major: int) -> int:
        """The most that FlashInfer's planner may ask for, and at least what it recommends.

        As in its scheduler.cuh: tiles of partial results and their weights, in float32, for each
        thread block that the GPU runs at once; a captured decode step has a tile per row and more.
        major: of the GPU's compute capability.
        """
        blocks = -(-BLOCKS_PER_SM * num_sms // self.num_kv_heads)
        tile = self._decode_tile(major)
        tiles = max_rows + -(-max_rows * self.group // tile)
        tokens = max(blocks * PREFILL_TILE, tiles * tile)
        return max(MIN_WORKSPACE_BYTES, 4 * self.num_heads * tokens * (self.head_dim + 1))

    def _decode_tile(self, major: int) -> int:
        """Query heads that one thread block computes: FA2DetermineCtaTileQ in its utils.cuh."""
        if self.group > 64 and self.head_dim < 256:
            return 128
        return 64 if self.group > 16 or major < AMPERE else 16


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
