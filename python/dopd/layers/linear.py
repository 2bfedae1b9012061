"""Matrix products.

On a CPU the weights are laid out once for oneDNN where this build of torch can do it.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# A product this size is computed both ways before packed weights are trusted.
PROBE_SHAPE = (48, 64)
PROBE_ROWS = 5
PROBE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.25}


class Linear(Protocol):
    """x @ weight.T, no bias. x: [tokens, in]; returns [tokens, out] in x's dtype."""

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply."""
        ...


def make_linear(weight: Tensor) -> Linear:
    """The fastest product for this weight ([out, in]) on its device and dtype.

    May keep its own copy.
    """
    if weight.device.type == "cpu" and can_pack(weight.dtype):
        return PackedLinear(weight)
    return PlainLinear(weight)


class PlainLinear:
    """torch's own product: every device, every dtype."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply."""
        return F.linear(x, self._weight)


class PackedLinear:
    """oneDNN over weights reordered once. The operators are private to torch, hence `can_pack`.

    Against torch's own at 8 rows, one thread of a Sapphire Rapids: 2.0x in float32 and 1.7x in
    bfloat16 for 3072 x 576, 2.6x and 1.6x for 49152 x 576. At one row float32 loses a fifth.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply."""
        product = torch.ops.mkldnn._linear_pointwise(x, self._weight, None, "none", [], "")
        assert isinstance(product, Tensor)
        return product


def can_pack(dtype: torch.dtype) -> bool:
    """True if oneDNN's packed product exists here and agrees with torch's own.

    Asked by capability, never by timing: all workers of one machine must choose alike, or a
    request that moves between them could part at a near-tie.
    """
    if dtype not in PROBE_TOLERANCE:
        return False
    if dtype not in _can_pack:
        _can_pack[dtype] = _probe(dtype)
    return _can_pack[dtype]


_can_pack: dict[torch.dtype, bool] = {}


def _probe(dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(PROBE_SHAPE, generator=generator).to(dtype)
    x = torch.randn((PROBE_ROWS, PROBE_SHAPE[1]), generator=generator).to(dtype)
    try:
        with torch.inference_mode():
            packed = PackedLinear(weight)(x)
    except (AttributeError, RuntimeError, TypeError):
        # Another torch: the operator is gone (AttributeError, RuntimeError) or takes other
        # arguments (TypeError).
        return False
    return torch.allclose(packed, F.linear(x, weight), rtol=0.0, atol=PROBE_TOLERANCE[dtype])
