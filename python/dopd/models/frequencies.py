"""The rotary frequencies of a model, stretched as its config says."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dopd.errors import ModelError
from dopd.weights.config import ModelConfig, RopeScaling


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each pair of dimensions: [head_dim / 2] float32."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling)
    factors = torch.tensor(scaling.factors, dtype=torch.float32)
    if factors.shape != frequencies.shape or not bool((factors > 0).all()):
        raise ModelError(
            f"rope_freqs.weight has {len(factors)} factors, must be {len(frequencies)} and positive"
        )
    return frequencies / factors


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Stretch long wavelengths by factor, keep short ones, blend between."""
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_max_positions / wavelengths
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_share = (turns - low) / (high - low)
    blended = (1 - kept_share) * frequencies / scaling.factor + kept_share * frequencies
    scaled = torch.where(turns < low, frequencies / scaling.factor, frequencies)
    is_between = (turns >= low) & (turns <= high)
    return torch.where(is_between, blended, scaled)
