"""FlashInfer's double: the same calls, computed naively on any device, and strict.

It takes what flashinfer_api.txt lists and nothing else, and checks what the kernels do not: dtypes,
devices, shapes, a plan before each run, buffers that stay where they are once captured. Unlike the
original it computes in float32, too, so that tokens can be compared. `installed` puts it in place.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

__version__ = "0.6.18.post1"
HEAD_DIMS = (64, 128, 256)
CUDA_CORE_GROUPS = (1, 2, 3, 4, 6, 8)
INT_WORKSPACE_BYTES = 8 << 20
NHD = "NHD"


class State:
    """What a test says of the world, and asks about what was called."""

    is_capturing = False
    # Whether a decode wrapper used tensor cores, wrapper by wrapper.
    tensor_cores: ClassVar[list[bool]] = []
    # Names of the calls that plan, in order.
    plans: ClassVar[list[str]] = []
    # How often two parts of the context were merged.
    merges = 0


@contextmanager
def installed() -> Iterator[type[State]]:
    """`import flashinfer` finds this, and dopd's back end is made anew upon it."""
    names = ("flashinfer", "dopd.attention.flashinfer")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.modules["flashinfer"] = sys.modules[__name__]
    State.is_capturing, State.tensor_cores, State.plans, State.merges = False, [], [], 0
    try:
        yield State
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


@contextmanager
def capturing() -> Iterator[None]:
    """What happens inside is captured into a CUDA graph: nothing may be planned."""
    State.is_capturing = True
    try:
        yield
    finally:
        State.is_capturing = False


def called_again(function: Callable[[], None]) -> Callable[[], None]:
    """A graph that is the function itself: captured when it is made, and at every replay."""

    def replay() -> None:
        with capturing():
            function()

    replay()
    return replay


def rmsnorm(input: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As flashinfer.rmsnorm."""
    assert input.ndim == 2 and input.stride(-1) == 1 and weight.shape == input.shape[1:]
    assert input.dtype == weight.dtype and input.device == weight.device
    assert weight.is_contiguous()
    return F.rms_norm(input, tuple(weight.shape), weight, eps)


def fused_add_rmsnorm(input: Tensor, residual: Tensor, weight: Tensor, eps: float) -> None:
    """As flashinfer.fused_add_rmsnorm: the sum to `residual`, its norm to `input`."""
    assert input.shape == residual.shape and input.dtype == residual.dtype
    assert residual.stride(-1) == 1 and input.data_ptr() != residual.data_ptr()
    residual.add_(input)
    input.copy_(rmsnorm(residual, weight, eps))


def silu_and_mul(input: Tensor) -> Tensor:
    """As flashinfer.silu_and_mul."""
    if input.shape[-1] * input.dtype.itemsize % 16:
        raise ValueError("The pointers must be multiple of 16 bytes.")
    # The kernel takes no strides, and reads both halves 16 bytes at a time.
    assert input.is_contiguous() and input.shape[-1] * input.dtype.itemsize % 32 == 0
    gate, up = input.chunk(2, dim=-1)
    return F.silu(gate) * up


def top_k_renorm_probs(probs: Tensor, top_k: Tensor) -> Tensor:
    """As flashinfer's: equals at the border all stay."""
    assert probs.dtype == torch.float32 and top_k.dtype == torch.int32
    assert probs.is_contiguous() and top_k.is_contiguous() and top_k.device == probs.device
    assert top_k.shape == probs.shape[:1] and bool((top_k > 0).all())
    ordered = probs.sort(dim=-1, descending=True).values
    return _renormed(probs, ordered.gather(1, top_k.long().unsqueeze(1) - 1))


def top_p_renorm_probs(probs: Tensor, top_p: Tensor, *, is_deterministic: bool) -> Tensor:
    """As flashinfer's: the least threshold above which the probabilities hold `top_p`."""
    assert is_deterministic and probs.dtype == top_p.dtype == torch.float32
    assert probs.is_contiguous() and top_p.is_contiguous() and top_p.device == probs.device
    assert top_p.shape == probs.shape[:1]
    assert bool(((probs.sum(dim=-1) - 1).abs() < 1e-4).all())
    ordered = probs.sort(dim=-1, descending=True).values
    before = ordered.double().cumsum(dim=-1) - ordered
    last = (before < top_p.unsqueeze(1)).sum(dim=-1, keepdim=True) - 1
    return _renormed(probs, ordered.gather(1, last))


def _renormed(probs: Tensor, least: Tensor) -> Tensor:
    kept = probs.masked_fill(probs < least, 0.0)
    return kept / kept.sum(dim=-1, keepdim=True)


def apply_rope_with_cos_sin_cache_inplace(
    positions: Tensor, query: Tensor, key: Tensor, head_size: int, cos_sin_cache: Tensor
) -> None:
    """As flashinfer's: query and key [tokens, heads * head_size] are turned in place."""
    assert cos_sin_cache.dtype == torch.float32 and cos_sin_cache.is_contiguous()
    assert positions.dtype in (torch.int32, torch.int64) and positions.is_contiguous()
    assert cos_sin_cache.shape[1] == head_size
    # The kernel asks for no bounds.
    assert bool(((positions >= 0) & (positions < len(cos_sin_cache))).all())
    cos, sin = (part.unsqueeze(1) for part in cos_sin_cache[positions.long()].chunk(2, dim=1))
    for part in (query, key):
        assert part.shape[0] == len(positions) and part.stride(-1) == 1
        assert part.device == positions.device == cos_sin_cache.device
        heads = part.view(len(part), -1, head_size)
        first, second = heads.float().chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        heads.copy_(turned)


def append_paged_kv_cache(
    append_key: Tensor,
    append_value: Tensor,
    batch_indices: Tensor,
    positions: Tensor,
    paged_kv_cache: Tensor,
    kv_indices: Tensor,
    kv_indptr: Tensor,
    kv_last_page_len: Tensor,
    kv_layout: str,
) -> None:
    """As flashinfer.append_paged_kv_cache."""
    assert kv_layout == NHD
    _check_cache(paged_kv_cache)
    for numbers in (batch_indices, positions, kv_indices, kv_indptr, kv_last_page_len):
        _check_numbers(numbers, paged_kv_cache.device)
    assert len(batch_indices) == len(positions) == len(append_key) == len(append_value)
    assert len(kv_indptr) == len(kv_last_page_len) + 1
    page_size = paged_kv_cache.shape[2]
    for part in (append_key, append_value):
        assert part.dtype == paged_kv_cache.dtype and part.device == paged_kv_cache.device
        assert part.shape[1:] == paged_kv_cache.shape[3:] and part.stride(-1) == 1
    starts, lasts = kv_indptr.tolist(), kv_last_page_len.tolist()
    pairs = zip(batch_indices.tolist(), positions.tolist(), strict=True)
    for token, (row, position) in enumerate(pairs):
        length = (starts[row + 1] - starts[row] - 1) * page_size + lasts[row]
        assert 0 <= position < length, f"position {position} of a row of {length}"
        page = int(kv_indices[starts[row] + position // page_size])
        paged_kv_cache[page, 0, position % page_size] = append_key[token]
        paged_kv_cache[page, 1, position % page_size] = append_value[token]


class _Wrapper:
    """What decode and prefill wrappers share."""

    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str) -> None:
        assert kv_layout == NHD
        _check_workspace(float_workspace_buffer)
        if not getattr(float_workspace_buffer, "is_known", False):
            assert not float_workspace_buffer.any(), "the workspace is not zeroed"
            float_workspace_buffer.is_known = True  # type: ignore[attr-defined]
        self.device = float_workspace_buffer.device
        self._plans = torch.zeros(INT_WORKSPACE_BYTES, dtype=torch.uint8, device=self.device)
        self._planned: tuple[Any, ...] | None = None
        self._qo_indptr = self._indptr = self._indices = self._last_page_len = torch.empty(0)
        self._causal = False

    def _note(self, name: str, dims: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
        """Check the numbers of a plan, and leave them in the workspace, where `run` looks."""
        assert not State.is_capturing, f"{name} inside a capture"
        num_heads, num_kv_heads, head_dim, page_size = dims
        assert num_heads % num_kv_heads == 0 and page_size >= 1
        if head_dim not in HEAD_DIMS:
            raise RuntimeError(f"Unsupported head_dim: {head_dim}")
        State.plans.append(name)
        self._planned = (dims, dtypes)

    def _write_plan(self, indptr: Tensor, last_page_len: Tensor) -> None:
        """What kernels need of a plan lies in the workspace, which wrappers may share."""
        told = torch.cat((indptr, last_page_len)).contiguous().view(torch.uint8)
        self._plans[: len(told)] = told.to(self.device)

    def _check_plan(self) -> None:
        found = torch.cat((self._indptr, self._last_page_len)).view(torch.uint8)
        assert torch.equal(self._plans[: len(found)], found), "planned for another step"

    def run(
        self, q: Tensor, paged_kv_cache: Tensor, *, out: Tensor, return_lse: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As the wrappers' run: each row over its own pages; weights of rows are to base 2."""
        assert self._planned is not None, "run before plan"
        (num_heads, num_kv_heads, head_dim, page_size), dtypes = self._planned
        _check_cache(paged_kv_cache)
        assert paged_kv_cache.shape[2:] == (page_size, num_kv_heads, head_dim)
        self._check_plan()
        starts = self._qo_indptr.tolist()
        assert q.shape == (starts[-1], num_heads, head_dim) and q.stride(-1) == 1
        assert (q.dtype, paged_kv_cache.dtype) == dtypes
        assert out.shape == q.shape and out.dtype == q.dtype and out.is_contiguous()
        assert out.device == q.device == paged_kv_cache.device
        pages, weights = self._indptr.tolist(), torch.empty(q.shape[:2], dtype=torch.float32)
        for row, last in enumerate(self._last_page_len.tolist()):
            own = self._indices[pages[row] : pages[row + 1]].long()
            length = (len(own) - 1) * page_size + last
            kv = paged_kv_cache[own].transpose(0, 1).reshape(2, -1, num_kv_heads, head_dim)
            tokens = slice(starts[row], starts[row + 1])
            kv = kv[:, :length]
            out[tokens], weights[tokens] = _attend(q[tokens], kv[0], kv[1], self._causal)
        return (out, weights.to(q.device)) if return_lse else out


class BatchDecodeWithPagedKVCacheWrapper(_Wrapper):
    """As flashinfer's."""

    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str,
        *,
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: Tensor | None = None,
        paged_kv_indices_buffer: Tensor | None = None,
        paged_kv_last_page_len_buffer: Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(float_workspace_buffer, kv_layout)
        assert backend == "fa2"
        State.tensor_cores.append(use_tensor_cores)
        self._use_tensor_cores, self._is_fixed = use_tensor_cores, use_cuda_graph
        if use_cuda_graph:
            buffers = (
                paged_kv_indptr_buffer,
                paged_kv_indices_buffer,
                paged_kv_last_page_len_buffer,
            )
            for buffer in buffers:
                assert buffer is not None
                _check_numbers(buffer, self.device)
            self._indptr, self._indices, self._last_page_len = buffers  # type: ignore[assignment]
            assert len(self._indptr) == len(self._last_page_len) + 1
            self._qo_indptr = _arange(len(self._last_page_len))

    def reset_workspace_buffer(
        self, float_workspace_buffer: Tensor, int_workspace_buffer: Tensor
    ) -> None:
        """As the wrapper's."""
        for workspace in (float_workspace_buffer, int_workspace_buffer):
            _check_workspace(workspace)
            assert workspace.device == self.device
        self._plans = int_workspace_buffer

    def plan(
        self,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
        disable_split_kv: bool = False,
    ) -> None:
        """As the wrapper's; with buffers of its own it copies into those."""
        _check_pages(indptr, indices, last_page_len, page_size)
        self._check_group(num_qo_heads // num_kv_heads, disable_split_kv)
        dims = (num_qo_heads, num_kv_heads, head_dim, page_size)
        self._note("decode", dims, (q_data_type, kv_data_type))
        if self._is_fixed:
            assert len(last_page_len) == len(self._last_page_len), "the batch size is fixed"
            self._indptr.copy_(indptr)
            self._last_page_len.copy_(last_page_len)
            self._indices[: len(indices)] = indices
        else:
            self._indptr, self._indices = indptr.to(self.device), indices.to(self.device)
            self._last_page_len = last_page_len.to(self.device)
            self._qo_indptr = _arange(len(last_page_len))
        self._write_plan(indptr, last_page_len)

    def _check_group(self, group: int, disable_split_kv: bool) -> None:
        # Without a split the planner gives no mask of the blocks that have no work.
        assert not (self._is_fixed and disable_split_kv), "blocks without work are not masked"
        if not self._use_tensor_cores:
            assert not disable_split_kv, "only the kernel with tensor cores heeds it"
            if group not in CUDA_CORE_GROUPS:
                raise RuntimeError(f"Unsupported group_size: {group}")


def fast_decode_plan(
    self: BatchDecodeWithPagedKVCacheWrapper,
    indptr: Tensor,
    indices: Tensor,
    last_page_len: Tensor,
    num_qo_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    *,
    q_data_type: torch.dtype,
    kv_data_type: torch.dtype,
    disable_split_kv: bool = False,
    global_override_indptr_cpu: Tensor,
) -> None:
    """As flashinfer's: plans, and leaves the buffers to who calls."""
    assert self._planned is not None, "the first plan chooses the kernels"
    assert self._is_fixed and global_override_indptr_cpu.device.type == "cpu"
    _check_pages(indptr, indices, last_page_len, page_size)
    self._check_group(num_qo_heads // num_kv_heads, disable_split_kv)
    assert len(last_page_len) == len(self._last_page_len), "the batch size is fixed"
    assert len(indices) <= len(self._indices)
    dims = (num_qo_heads, num_kv_heads, head_dim, page_size)
    self._note("fast", dims, (q_data_type, kv_data_type))
    self._write_plan(global_override_indptr_cpu, last_page_len)


class BatchPrefillWithPagedKVCacheWrapper(_Wrapper):
    """As flashinfer's."""

    def __init__(
        self, float_workspace_buffer: Tensor, kv_layout: str, *, backend: str = "auto"
    ) -> None:
        super().__init__(float_workspace_buffer, kv_layout)
        assert backend in ("fa2", "fa3")

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool = False,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
        disable_split_kv: bool = False,
    ) -> None:
        """As the wrapper's."""
        del disable_split_kv
        _check_pages(paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, page_size)
        _check_numbers(qo_indptr, torch.device("cpu"))
        assert len(qo_indptr) == len(paged_kv_indptr) and int(qo_indptr[0]) == 0
        lengths = (paged_kv_indptr.diff() - 1) * page_size + paged_kv_last_page_len
        counts = qo_indptr.diff()
        assert bool((counts > 0).all()) and (not causal or bool((counts <= lengths).all()))
        dims = (num_qo_heads, num_kv_heads, head_dim_qk, page_size)
        self._note("prefill", dims, (q_data_type, kv_data_type))
        self._causal = causal
        self._qo_indptr = qo_indptr.to(self.device)
        self._indptr, self._indices = (
            paged_kv_indptr.to(self.device),
            paged_kv_indices.to(self.device),
        )
        self._last_page_len = paged_kv_last_page_len.to(self.device)
        self._write_plan(paged_kv_indptr, paged_kv_last_page_len)


def merge_state_in_place(v: Tensor, s: Tensor, v_other: Tensor, s_other: Tensor) -> None:
    """As flashinfer's: what was found in two parts of the context, by their weights to base 2."""
    for part in (v, v_other):
        assert part.ndim == 3 and part.shape == v.shape and part.dtype == v.dtype
        assert part.is_contiguous() and part.device == v.device
    for part in (s, s_other):
        # Another dtype would be copied, and the copy changed.
        assert part.shape == v.shape[:2] and part.dtype == torch.float32
        assert part.is_contiguous() and part.device == v.device
    assert v.data_ptr() != v_other.data_ptr() and s.data_ptr() != s_other.data_ptr()
    # A thread block has threads for all heads of a token; in float32 as if it was bfloat16.
    assert v.shape[1] * (v.shape[2] // 8) <= 1024, "invalid configuration argument"
    State.merges += 1
    both = torch.logaddexp2(s, s_other)
    ours, theirs = (torch.exp2(part - both).unsqueeze(-1) for part in (s, s_other))
    v.copy_(ours * v.float() + theirs * v_other.float())
    s.copy_(both)


def _attend(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Softmax attention in float32, and log2 of what it divided by.

    A causal mask is aligned at the bottom right.
    """
    group = query.shape[1] // key.shape[1]
    key, value = (part.float().repeat_interleave(group, dim=1) for part in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.float(), key) / query.shape[-1] ** 0.5
    if causal:
        seen = torch.ones(scores.shape[1:], dtype=torch.bool, device=query.device)
        scores.masked_fill_(~seen.tril_(len(key) - len(query)), float("-inf"))
    out = torch.einsum("hqk,khd->qhd", torch.softmax(scores, dim=-1), value)
    return out.to(query.dtype), torch.logsumexp(scores, dim=-1).T / math.log(2)


def _arange(count: int) -> Tensor:
    return torch.arange(count + 1, dtype=torch.int32)


def _check_workspace(workspace: Tensor) -> None:
    assert workspace.dtype == torch.uint8 and workspace.data_ptr() % 16 == 0


def _check_numbers(numbers: Tensor, device: torch.device) -> None:
    assert numbers.dtype == torch.int32 and numbers.ndim == 1 and numbers.is_contiguous()
    assert numbers.device == device


def _check_pages(indptr: Tensor, indices: Tensor, last_page_len: Tensor, page_size: int) -> None:
    """Pages of a batch: numbers that the planner reads are on the CPU."""
    for numbers in (indptr, last_page_len):
        _check_numbers(numbers, torch.device("cpu"))
    _check_numbers(indices, indices.device)
    assert len(indptr) == len(last_page_len) + 1 and int(indptr[0]) == 0
    assert bool((indptr.diff() > 0).all()), "a row without pages"
    assert int(indptr[-1]) == len(indices), "page numbers and their ranges do not fit"
    assert bool(((last_page_len > 0) & (last_page_len <= page_size)).all())


def _check_cache(cache: Tensor) -> None:
    assert cache.ndim == 5 and cache.shape[1] == 2 and cache.stride(-1) == 1
