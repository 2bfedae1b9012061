"""`python -m tests.support.gpu.asked_kernels`: which kernels FlashInfer itself is asked for.

dopd's calls go through the real wheel, on CPU tensors: FlashInfer chooses a kernel and would
compile and load it; here its name is written down, and what is loaded in its place computes
nothing. Prints JSON: for each case what was asked for, and what `dopd kernels` compiles. It needs a
process of its own, with FLASHINFER_CUDA_ARCH_LIST.
"""

from __future__ import annotations

import functools
import json
import sys
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
from flashinfer.jit import core

from dopd.attention.base import Attention, BatchMeta
from dopd.attention.flashinfer import FlashInferCascade, FlashInferKernels
from dopd.attention.flashinfer_kernels import specs
from dopd.attention.flashinfer_shape import Shape
from dopd.engine.torch_batch import Span, lay_out

PAGE_SIZE = 16
PAGES, ROWS = 18, 8
# Query heads and KV heads: SmolLM2's, Llama-3.1-8B's, and a group without a kernel of its own.
CASES = [
    (*heads, head_dim, dtype, prefill)
    for heads, head_dim in (((9, 3), 64), ((32, 8), 128), ((5, 1), 64))
    for dtype in (torch.bfloat16, torch.float16)
    for prefill in ("fa2", "fa3")
]
asked: set[str] = set()


class Loaded:
    """In place of a library: takes every call, and a plan of it is a list of numbers."""

    def __getattr__(self, name: str) -> Any:
        """Any function."""
        return lambda *args, **options: [0] * 16


def build_and_load(spec: Any) -> Loaded:
    """In place of FlashInfer's."""
    asked.add(spec.name)
    return Loaded()


def step(attention: Attention, meta: BatchMeta, heads: int, kv_heads: int, head_dim: int) -> None:
    """Plan, append, run."""
    count = len(meta.positions)
    query = torch.zeros(count, heads, head_dim, dtype=PoolDtype.current)
    key = query[:, :kv_heads]
    attention.plan(meta)
    attention.append(0, key, key)
    attention.run(0, query)


class PoolDtype:
    """Of the case at hand."""

    current = torch.bfloat16


def attend(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, prefill: str) -> None:
    """Every kind of step: prompts, decode, both, shared pages, a captured size planned twice."""
    PoolDtype.current = dtype
    pool = torch.zeros(PAGES, 1, 2, PAGE_SIZE, kv_heads, head_dim, dtype=dtype)
    attention = FlashInferCascade(pool, heads, max_rows=ROWS, max_row_pages=PAGES, prefill=prefill)
    decode, prompt = Span(3, 1, [0]), Span(0, 5, [1])
    shared = [Span(17 * PAGE_SIZE, 1, range(PAGES))] * ROWS
    dims = (heads, kv_heads, head_dim)
    for rows in ([decode], [prompt], [decode, prompt], shared):
        step(attention, lay_out(rows, PAGE_SIZE), *dims)
    for _ in range(2):
        step(attention.fixed(2), lay_out([decode, decode], PAGE_SIZE), *dims)


def compute(heads: int, head_dim: int, dtype: torch.dtype) -> None:
    """What stands between matrix products, and the filters of sampling."""
    angles = torch.zeros(32, head_dim // 2)
    kernels = FlashInferKernels(angles, angles, heads, torch.device("cpu"))
    x, weight = torch.zeros(2, 64, dtype=dtype), torch.zeros(64, dtype=dtype)
    kernels.rms_norm(x, weight, 1e-5)
    kernels.add_rms_norm(x, x, weight, 1e-5)
    kernels.silu_mul(x)
    kernels.rotation(torch.tensor([0, 1]))(torch.zeros(2, heads + 1, head_dim, dtype=dtype))
    kernels.keep_top(torch.ones(2, 64) / 64, [3, 0], [0.5, 1.0])


def forget() -> None:
    """What FlashInfer has loaded it keeps: the next case would not ask for it."""
    asked.clear()
    names = [name for name in sys.modules if name.partition(".")[0] == "flashinfer"]
    for value in [value for name in names for value in vars(sys.modules[name]).values()]:
        if isinstance(value, functools._lru_cache_wrapper):
            value.cache_clear()


def main() -> None:
    """Print what each case asked for."""
    found = []
    for heads, kv_heads, head_dim, dtype, prefill in CASES:
        forget()
        attend(heads, kv_heads, head_dim, dtype, prefill)
        compute(heads, head_dim, dtype)
        shape = Shape(heads, kv_heads, head_dim, PAGE_SIZE, dtype)
        compiled = [spec.name for spec in specs([shape], prefill)]
        found.append(
            {"case": f"{shape}, {prefill}", "asked": sorted(asked), "compiled": sorted(compiled)}
        )
    print(json.dumps(found))


if __name__ == "__main__":
    pinless = torch.empty
    with (
        mock.patch.object(core.JitSpec, "build_and_load", build_and_load),
        # FlashInfer pins its plans and makes their device the current one: here is none.
        mock.patch("torch.empty", lambda *size, pin_memory=None, **o: pinless(*size, **o)),
        mock.patch("torch.cuda.device", lambda device: nullcontext()),
    ):
        main()
