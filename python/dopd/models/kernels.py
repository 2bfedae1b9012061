"""Which kernels a model computes with: those that go with its attention back end.

Called by the engine when it loads a model.
"""

from __future__ import annotations

import torch

from dopd.attention import choose
from dopd.layers.kernels import Kernels, TorchKernels
from dopd.layers.rope import Rope
from dopd.models.frequencies import inverse_frequencies
from dopd.weights.config import ModelConfig


def make_kernels(
    attention: str,
    config: ModelConfig,
    num_positions: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Kernels:
    """Kernels for this model.

    attention: as `choose.choose` returned it. num_positions: the longest sequence.
    """
    rope = Rope(inverse_frequencies(config), num_positions)
    if attention == choose.FLASHINFER:
        made: Kernels = choose.flashinfer().FlashInferKernels(
            rope.cos, rope.sin, config.num_heads, device
        )
        return made
    return TorchKernels(rope, dtype, device)
