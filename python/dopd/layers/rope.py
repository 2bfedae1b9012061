"""Rotary position embedding: the halves of a head are turned against each other by position."""

from __future__ import annotations

import torch
from torch import Tensor


class Rope:
    """Cosines and sines of every position, made in float32 and kept in the model's dtype."""

    def __init__(
        self, frequencies: Tensor, num_positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """frequencies: [head_dim / 2] float32, radians per position."""
        angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
        self._cos = angles.cos().to(device, dtype)
        self._sin = angles.sin().to(device, dtype)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for a step's tokens, shared by all layers.

        positions: [tokens] on the model's device. Returns two [tokens, 1, head_dim / 2].
        """
        return self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x: [tokens, heads, head_dim] by the angles from `Rope.at`; returns a new tensor."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
