"""The small operations between matrix products, of which a device may have fused kernels.

`TorchKernels` is the meaning of them all and the path of CPU workers; `attention/flashinfer.py` has
the kernels for NVIDIA GPUs. Made by `models.kernels`, called by the models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dopd.layers.rope import Rope, rotate

# Turns heads [tokens, query heads and then key heads, head_dim] by the positions of their tokens;
# returns the same shape, which may be the same memory.
Rotation = Callable[[Tensor], Tensor]


class Kernels(Protocol):
    """All tensors on the model's device and in its dtype, [tokens, width].

    What is said to be overwritten may be, by some kernels.
    """

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / rms(x) * weight over the last axis, the mean in float32; x stays as it is."""
        ...

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """The norm of `residual + x`, and that sum. Both arguments are overwritten."""
        ...

    def rotation(self, positions: Tensor) -> Rotation:
        """How heads are turned in a step: asked for once, used by every layer.

        positions: [tokens] int64. The heads that are turned are overwritten.
        """
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up of `gate_up` [tokens, 2 * width], gate before up; returns [.., width]."""
        ...

    def keep_top(
        self, probabilities: Tensor, top_k: Sequence[int], top_p: Sequence[float]
    ) -> Tensor:
        """Zero in place of what is not among a row's most likely: [rows, vocab_size].

        probabilities: float64, of a sum that may be below 1. top_k: how many stay, 0 for all;
        top_p: which share of those stays, 1 for all. Of others than zeros only which they are
        counts. Among equals at the border the lowest ids stay, or, with some kernels, all.
        """
        ...


class TorchKernels:
    """`Kernels` in plain torch; overwrites nothing."""

    def __init__(self, rope: Rope, dtype: torch.dtype, device: torch.device) -> None:
        """dtype: the model's, in which cosines and sines are kept."""
        self._cos = rope.cos.to(device, dtype)
        self._sin = rope.sin.to(device, dtype)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels.rms_norm`."""
        return F.rms_norm(x, (len(weight),), weight, eps)

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See `Kernels.add_rms_norm`."""
        residual = residual + x
        return self.rms_norm(residual, weight, eps), residual

    def rotation(self, positions: Tensor) -> Rotation:
        """See `Kernels.rotation`."""
        cos, sin = (table[positions].unsqueeze(1) for table in (self._cos, self._sin))
        return lambda heads: rotate(heads, cos, sin)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See `Kernels.silu_mul`."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def keep_top(
        self, probabilities: Tensor, top_k: Sequence[int], top_p: Sequence[float]
    ) -> Tensor:
        """See `Kernels.keep_top`; the lowest ids stay."""
        device, size = probabilities.device, probabilities.shape[-1]
        most = torch.tensor([k or size for k in top_k]).to(device, non_blocking=True)
        shares = torch.tensor([p if p < 1 else float("inf") for p in top_p], dtype=torch.float64)
        values, ids = probabilities.sort(dim=-1, descending=True, stable=True)
        ranks = torch.arange(size, device=device)
        values = values.masked_fill(ranks >= most.unsqueeze(1), 0.0)
        enough = shares.to(device, non_blocking=True) * values.sum(dim=-1)
        # One stays as long as those before it do not hold enough.
        before = F.pad(values.cumsum(dim=-1)[:, :-1], (1, 0))
        values = values.masked_fill(before >= enough.unsqueeze(1), 0.0)
        return torch.zeros_like(probabilities).scatter_(-1, ids, values)
