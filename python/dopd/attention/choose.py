"""Which attention back end a worker computes with. Called by the engine.

The only file that imports `attention.flashinfer`, and only when that is what was chosen: nothing
else of dopd knows whether FlashInfer is installed.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from dopd import env
from dopd.attention.base import Attention
from dopd.attention.probe import probe
from dopd.attention.torch import TorchAttention
from dopd.errors import ConfigError

AUTO, FLASHINFER, TORCH = "auto", "flashinfer", "torch"
NAMES = (AUTO, FLASHINFER, TORCH)
# fa3 is for Hopper, and asked for by name only, in DOPD_FLASHINFER_PREFILL: it takes minutes to
# compile where no kernels came ready-made.
PREFILL_KERNELS = ("fa2", "fa3")


def choose(asked: str, device: torch.device) -> str:
    """FLASHINFER or TORCH, for one of NAMES; "auto" is FlashInfer on a GPU and torch on a CPU.

    Raises ConfigError if it cannot be had: torch in its place would be many times as slow, which
    nobody asked for.
    """
    if asked not in NAMES:
        raise ConfigError(f"attention {asked!r} is unknown; give {', '.join(NAMES)}")
    if asked == AUTO:
        asked = FLASHINFER if device.type == "cuda" else TORCH
    if asked == FLASHINFER:
        if device.type != "cuda":
            raise ConfigError(
                f"attention flashinfer computes on CUDA devices, not on {device.type}; "
                "give --attention torch"
            )
        flashinfer()
    return asked


def make(
    name: str,
    pool: Tensor,
    num_heads: int,
    *,
    max_rows: int,
    max_row_pages: int,
    fixed_split: bool = False,
    cascade: bool = False,
) -> Attention:
    """The back end over a pool [pages, layers, 2, page, kv_heads, head_dim].

    name: as `choose` returned it. num_heads: of the queries. max_rows: sequences in a step that
    decodes; max_row_pages: pages of one. fixed_split: see `FlashInferAttention`; cascade: see
    `CascadeAttention`, not both. Raises ConfigError if the back end has no kernels for this model
    or device. The last page must be nobody's yet.
    """
    if name == TORCH:
        if cascade:
            raise ConfigError(
                "cascade-attention is of FlashInfer's attention, and this worker's is torch"
            )
        return TorchAttention(pool)
    back_end = flashinfer()
    shape = back_end.Shape.of(pool, num_heads)
    shape.check()
    if cascade:
        shape.check_merge()
    kind = back_end.FlashInferCascade if cascade else back_end.FlashInferAttention
    made: Attention = kind(
        pool,
        num_heads,
        max_rows=max_rows,
        max_row_pages=max_row_pages,
        fixed_split=fixed_split,
        prefill=_prefill(),
    )
    probe(made, pool, num_heads)
    return made


def _prefill() -> str:
    """Which of FlashInfer's kernels prefill. Raises ConfigError."""
    asked = env.get("FLASHINFER_PREFILL") or PREFILL_KERNELS[0]
    if asked not in PREFILL_KERNELS:
        raise ConfigError(
            f"DOPD_FLASHINFER_PREFILL is {asked!r}, none of {', '.join(PREFILL_KERNELS)}"
        )
    return asked


def flashinfer() -> ModuleType:
    """`attention.flashinfer`. Raises ConfigError if FlashInfer is missing, broken or too old."""
    try:
        found = import_module("dopd.attention.flashinfer")
    except Exception as error:
        # A wheel that does not fit this machine fails in whatever way: a missing library is an
        # OSError, another torch an AttributeError.
        raise ConfigError(
            f"attention flashinfer cannot be used ({type(error).__name__}: {error}): "
            "pip install 'dopd[gpu]' brings flashinfer-python and apache-tvm-ffi; "
            "--attention torch does without, slowly"
        ) from error
    found.check_version()
    return found
