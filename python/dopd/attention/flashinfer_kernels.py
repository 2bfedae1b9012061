"""Which of FlashInfer's kernels a worker asks for, as build files. Called by `dopd kernels`.

Beside `attention/flashinfer.py`, whose calls lead to these and no others: a test drives those calls
through the wheel and compares. Importing it needs FlashInfer and no GPU; FlashInfer reads
FLASHINFER_CUDA_ARCH_LIST and CUDA_HOME when it is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import flashinfer
import torch
from flashinfer.compilation_context import CompilationContext
from flashinfer.jit import env as jit_env
from flashinfer.jit.activation import gen_act_and_mul_module
from flashinfer.jit.attention import modules
from flashinfer.jit.cascade import gen_cascade_module
from flashinfer.jit.cpp_ext import get_cuda_version
from flashinfer.jit.norm import gen_norm_module
from flashinfer.jit.page import gen_page_module
from flashinfer.jit.rope import gen_rope_module
from flashinfer.jit.sampling import gen_sampling_module

from dopd.attention.compile import Kernel
from dopd.attention.flashinfer_shape import Shape

# Of a kernel: positions are not encoded in it, no sliding window, no soft cap of logits; and the
# products of prefill are not summed in float16.
PLAIN = (0, False, False)
SUMS_IN_FLOAT16 = False

# FlashInfer's JitSpec, which has no types.
Spec = Any


def specs(shapes: Iterable[Shape], prefill: str) -> list[Spec]:
    """What a worker asks for that serves models of these shapes, each once; cheap ones first.

    prefill: fa2 or fa3, of prompts. Raises ConfigError if FlashInfer has no kernels for a shape.
    """
    found = {spec.name: spec for spec in _of_all_models()}
    for shape in shapes:
        shape.check()
        found |= {spec.name: spec for spec in _of_shape(shape, prefill)}
    return list(found.values())


def _of_all_models() -> Iterator[Spec]:
    yield gen_act_and_mul_module("silu")
    yield gen_page_module()
    yield gen_rope_module()
    yield gen_norm_module()
    yield gen_sampling_module()
    # A few seconds, for who gives --cascade-attention.
    yield gen_cascade_module()


def _of_shape(shape: Shape, prefill: str) -> Iterator[Spec]:
    dtypes = (shape.dtype, shape.dtype, shape.dtype, torch.int32)
    dims = (shape.head_dim, shape.head_dim)
    if not shape.wants_tensor_cores:
        yield modules.gen_batch_decode_module(*dtypes, *dims, *PLAIN)
    # By fa2 decode by tensor cores, a prefill of one token, and what a cascade shares.
    for back_end in sorted({prefill, "fa2"}):
        generate = modules.gen_batch_prefill_module
        if back_end == "fa2":
            # FlashInfer 0.7 has a library of its own for keys and values that lie alike.
            generate = getattr(modules, "_gen_batch_prefill_primary_module", generate)
        yield generate(back_end, *dtypes, *dims, *PLAIN, SUMS_IN_FLOAT16)


def prepare(spec: Spec, stubs: Path) -> Kernel:
    """Write its build file, into FlashInfer's own cache. stubs: see `toolkit.make_stubs`."""
    spec.extra_ldflags = [f"-L{stubs}", *(spec.extra_ldflags or [])]
    spec.write_ninja()
    return Kernel(spec.name, spec.ninja_path, spec.jit_library_path, spec.lock_path)


def stubs_folder() -> Path:
    """A folder that stays, or every run would link all libraries anew."""
    return Path(jit_env.FLASHINFER_WORKSPACE_DIR) / "dopd-stubs"


def version() -> str:
    """FlashInfer's."""
    return str(flashinfer.__version__)


def cuda_version() -> str:
    """The compiler's: 13.0."""
    return str(get_cuda_version())


def architectures() -> list[str]:
    """What the kernels are compiled for: sm90a."""
    return [f"sm{a}{b}" for a, b in sorted(CompilationContext().TARGET_CUDA_ARCHS)]
