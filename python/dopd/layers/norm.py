"""Root-mean-square normalisation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class RmsNorm:
    """x / rms(x) * weight over the last axis; the mean is taken in float32 whatever the dtype."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        """x: [tokens, hidden]; returns the same shape and dtype."""
        return F.rms_norm(x, (self.weight.shape[0],), self.weight, self.eps)
