"""The weights of a made-up model: the same on every device, since integers make them.

Made where they are needed, tensor by tensor; nothing is read or copied.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dopd.weights.checkpoint import expected_shapes
from dopd.weights.made_up import MadeUp

# Numbers made at once, by the type of device: what a processor's cache holds as integers, what
# keeps a GPU busy.
AT_ONCE = {"cpu": 1 << 15, "cuda": 1 << 24}
MASK = (1 << 32) - 1
# Over the standard deviation of a uniform number in -1 to 1.
SPREAD = math.sqrt(3)
# Logits are so many times as wide as they would be, so that few are nearly alike.
EMBEDDING_GAIN = 4.0


class RandomCheckpoint:
    """`dopd.weights.checkpoint.Checkpoint` of no files."""

    def __init__(self, model: MadeUp, device: torch.device) -> None:
        """device: where tensors are made."""
        self.config = model.config
        self._model = model
        self._device = device
        self._shapes = expected_shapes(model.config)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor."""
        return self._shapes

    def tensor(self, name: str) -> Tensor:
        """One tensor in float32: norms are 1, a matrix keeps the variance of what it multiplies."""
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, device=self._device)
        is_embedding = name in ("model.embed_tokens.weight", "lm_head.weight")
        gain = EMBEDDING_GAIN if is_embedding else 1.0
        return self._uniform(name, shape, gain * SPREAD / math.sqrt(shape[1]))

    def _uniform(self, name: str, shape: tuple[int, ...], width: float) -> Tensor:
        """Uniform in -width to width, by a hash of each number's place."""
        seed = f"{self._model.seed}:{name}".encode()
        key = int.from_bytes(hashlib.sha256(seed).digest()[:4], "little")
        made = torch.empty(math.prod(shape), device=self._device)
        at_once = AT_ONCE[self._device.type]
        for start in range(0, len(made), at_once):
            end = min(start + at_once, len(made))
            bits = torch.arange(start, end, dtype=torch.int64, device=self._device)
            # 16 bits of each, centred: whole numbers and halves are exact in float32.
            centred = (_mix(bits.bitwise_xor_(key)) >> 16).float().sub_(32767.5)
            made[start:end] = centred.mul_(width / 32768)
        return made.view(shape)


def _mix(x: Tensor) -> Tensor:
    """A 32-bit hash (two rounds of xor-shift and multiply, after C. Wellons' hash prospector). Both
    factors are below 2**31, so no product leaves 63 bits."""
    x.bitwise_xor_(x >> 16).mul_(0x21F0AAAD).bitwise_and_(MASK)
    x.bitwise_xor_(x >> 15).mul_(0x735A2D97).bitwise_and_(MASK)
    return x.bitwise_xor_(x >> 15)
