"""Rotary position embedding: the halves of a head are turned against each other by position."""

from __future__ import annotations

import torch
from torch import Tensor


class Rope:
    """Cosines and sines of every position: two [positions, head_dim / 2], float32, on the CPU."""

    def __init__(self, frequencies: Tensor, num_positions: int) -> None:
        """frequencies: [head_dim / 2] float32, radians per position."""
        angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
        self.cos = angles.cos()
        self.sin = angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x: [tokens, heads, head_dim] by [tokens, 1, head_dim / 2] each; returns a new tensor."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
