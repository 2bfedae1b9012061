"""FlashInfer's kernels over the paged pool: attention, and what stands between matrix products.

The only file that knows FlashInfer; `choose` imports it when it was chosen. Every call here is
written down in tests/support/gpu/flashinfer_api.txt, which tests hold against the wheel.

Metadata go to `plan` from the CPU, where FlashInfer needs them, except page numbers: those the
kernels alone read, and FlashInfer waits for the whole GPU where it copies them itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import flashinfer
import torch
from torch import Tensor

from dopd.attention.base import Attention, BatchMeta
from dopd.attention.cascade import Split, num_shared, split
from dopd.attention.flashinfer_shape import AMPERE, Shape
from dopd.attention.staging import FixedStaging, Staging
from dopd.errors import ConfigError

# What was read when this was written; below them calls differ, above nobody has looked.
OLDEST, TOO_NEW = (0, 6, 18), (0, 8)
LAYOUT = "NHD"
# Plans of captured decode steps: a few numbers per thread block. FlashInfer's default of 8 MiB, on
# the device and pinned, for every captured size would be hundreds of MiB.
FIXED_PLAN_BYTES = 1 << 20


def check_version() -> None:
    """Raise ConfigError if this FlashInfer is not one that the calls below were written for."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", flashinfer.__version__)
    version = tuple(map(int, found.groups())) if found else ()
    if not OLDEST <= version < TOO_NEW:
        raise ConfigError(
            f"flashinfer-python {flashinfer.__version__} is installed, "
            f"{'.'.join(map(str, OLDEST))} up to before {'.'.join(map(str, TOO_NEW))} is needed: "
            "pip install 'dopd[gpu]'"
        )


class FlashInferAttention:
    """`dopd.attention.base.GraphAttention` over a pool on a GPU. One stream at a time uses it."""

    def __init__(
        self,
        pool: Tensor,
        num_heads: int,
        *,
        max_rows: int,
        max_row_pages: int,
        fixed_split: bool = False,
        prefill: str = "fa2",
    ) -> None:
        """pool: [pages, layers, 2, page, kv_heads, head_dim]. num_heads: of the queries.

        max_rows, max_row_pages: of the decode steps that are captured. fixed_split: a row is
        computed alike whatever rows of its kind stand beside it, by one thread block each, so long
        contexts are slow: for tests that compare tokens; not captured. prefill: fa2 or fa3.
        """
        self._shape = shape = Shape.of(pool, num_heads)
        self._dims = (shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.page_size)
        self._layers = pool.unbind(1)
        self._options: dict[str, Any] = {
            "q_data_type": pool.dtype,
            "kv_data_type": pool.dtype,
            "disable_split_kv": fixed_split,
        }
        self._max_rows, self._max_row_pages = max_rows, max_row_pages
        # Shared by all kernels, which one stream runs one after the other. They find it zeroed.
        workspace = self._shape.workspace_bytes(max_rows, *_processors(pool.device))
        self._workspace = torch.zeros(workspace, dtype=torch.uint8, device=pool.device)
        tensor_cores = fixed_split or self._shape.wants_tensor_cores
        self._decode = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace, LAYOUT, use_tensor_cores=tensor_cores, backend="fa2"
        )
        self._prefill = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
            self._workspace, LAYOUT, backend=prefill
        )
        self._tensor_cores = tensor_cores
        self._staging = Staging(pool.device)
        self._num_decode_rows = self._num_rows = 0
        self._slots: tuple[Tensor, ...] = ()
        self._pages: tuple[Tensor, ...] = ()
        self._shared: FixedBuffers | None = None
        self._fixed: dict[int, Attention] = {}

    def plan(self, meta: BatchMeta) -> None:
        """Prepare one step: rows that decode and rows that prefill are planned apart."""
        rows, decodes = len(meta.last_page_len), meta.num_decode_rows
        self._num_rows, self._num_decode_rows = rows, decodes
        counts = meta.qo_indptr.diff()
        token_rows = torch.repeat_interleave(torch.arange(rows, dtype=torch.int32), counts)
        shared = self._split(meta)
        # The memory that the last plan is copied from may be written again only when it has been.
        self._staging.wait()
        token_rows, positions, indices, indptr, last_page_len, *rest = self._staging.put(
            *(token_rows, meta.positions, meta.kv_indices, meta.kv_indptr, meta.last_page_len),
            *((shared.indices,) if shared else ()),
        )
        self._slots = (token_rows, positions)
        self._pages = (indices, indptr, last_page_len)
        decode_pages = int(meta.kv_indptr[decodes])
        if decodes:
            self._plan_decode(meta, indices[:decode_pages], shared, *rest)
        if decodes < rows:
            self._prefill.plan(
                meta.qo_indptr[decodes:] - decodes,
                meta.kv_indptr[decodes:] - decode_pages,
                indices[decode_pages:],
                meta.last_page_len[decodes:],
                *self._dims,
                causal=True,
                **self._options,
            )
        self._staging.mark()

    def _split(self, meta: BatchMeta) -> Split | None:
        """Decode rows whose first pages are computed once for all; see `CascadeAttention`."""
        del meta
        return None

    def _plan_decode(
        self, meta: BatchMeta, indices: Tensor, shared: Split | None, rest: Tensor | None = None
    ) -> None:
        """Plan the decode rows. indices, rest: pages and unshared pages of them, on the device."""
        rows = meta.num_decode_rows
        self._decode.plan(
            shared.indptr if shared else meta.kv_indptr[: rows + 1],
            indices if rest is None else rest,
            meta.last_page_len[:rows],
            *self._dims,
            **self._options,
        )

    def append(self, layer: int, key: Tensor, value: Tensor) -> None:
        """See `Attention.append`."""
        flashinfer.append_paged_kv_cache(
            key, value, *self._slots, self._layers[layer], *self._pages, LAYOUT
        )

    def run(self, layer: int, query: Tensor) -> Tensor:
        """See `Attention.run`."""
        decodes, cache = self._num_decode_rows, self._layers[layer]
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        if decodes:
            self._run_decode(query[:decodes], cache, out[:decodes])
        if decodes < self._num_rows:
            self._prefill.run(query[decodes:], cache, out=out[decodes:])
        return out

    def _run_decode(self, query: Tensor, cache: Tensor, out: Tensor) -> None:
        self._decode.run(query, cache, out=out)

    def fixed(self, batch_size: int) -> Attention:
        """See `GraphAttention.fixed`. Not with a fixed split."""
        if self._options["disable_split_kv"]:
            # A captured step has blocks without work. FlashInfer 0.6.18 marks them only where it
            # splits rows; else they take for work what an earlier plan left (scheduler.cuh).
            raise ValueError("a fixed split cannot be captured into a CUDA graph")
        if not 1 <= batch_size <= self._max_rows:
            raise ValueError(f"a view for {batch_size} rows, made for 1 to {self._max_rows}")
        if self._shared is None:
            self._shared = FixedBuffers(
                self._max_rows, self._max_row_pages, self._workspace, self._staging
            )
        if batch_size not in self._fixed:
            self._fixed[batch_size] = FixedDecode(
                batch_size,
                self._shape,
                self._layers,
                self._shared,
                tensor_cores=self._tensor_cores,
                options=self._options,
            )
        return self._fixed[batch_size]


class FlashInferCascade(FlashInferAttention):
    """`dopd.attention.base.CascadeAttention`: pages that all decode rows share are read once.

    Two kernels, and a merge of what they found. `MultiLevelCascadeAttentionWrapper` does the same
    with kernels for prompts alone, also for what rows have for themselves, and on Hopper with fa3,
    which nobody asked for and which takes minutes to compile.
    """

    def __init__(self, pool: Tensor, num_heads: int, **options: Any) -> None:
        """As `FlashInferAttention`; rows depend on each other, so there is no fixed split."""
        super().__init__(pool, num_heads, **options)
        if self._options["disable_split_kv"]:
            raise ValueError("a cascade computes rows by what stands beside them: no fixed split")
        self._prefix = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
            self._workspace, LAYOUT, backend="fa2"
        )
        self._is_shared = False

    def shares(self, meta: BatchMeta) -> bool:
        """See `CascadeAttention.shares`."""
        return num_shared(meta, self._shape.page_size) > 0

    def _split(self, meta: BatchMeta) -> Split | None:
        return split(meta, self._shape.page_size)

    def _plan_decode(
        self, meta: BatchMeta, indices: Tensor, shared: Split | None, rest: Tensor | None = None
    ) -> None:
        super()._plan_decode(meta, indices, shared, rest)
        self._is_shared = shared is not None
        if shared:
            # One row of as many tokens as there are rows, each of which sees all of these pages.
            self._prefix.plan(
                torch.tensor([0, meta.num_decode_rows], dtype=torch.int32),
                torch.tensor([0, shared.num_shared], dtype=torch.int32),
                indices[: shared.num_shared],
                torch.tensor([self._shape.page_size], dtype=torch.int32),
                *self._dims,
                causal=False,
                **self._options,
            )

    def _run_decode(self, query: Tensor, cache: Tensor, out: Tensor) -> None:
        if not self._is_shared:
            super()._run_decode(query, cache, out)
            return
        _, weight = self._decode.run(query, cache, out=out, return_lse=True)
        prefix, prefix_weight = self._prefix.run(
            query, cache, out=torch.empty_like(out), return_lse=True
        )
        flashinfer.merge_state_in_place(out, weight, prefix, prefix_weight)


class FixedBuffers:
    """Device memory that captured decode steps of all sizes read; at most one is under way."""

    def __init__(
        self, max_rows: int, max_row_pages: int, workspace: Tensor, staging: Staging
    ) -> None:
        device = workspace.device
        self.workspace, self.staging = workspace, staging
        self.plans = torch.zeros(FIXED_PLAN_BYTES, dtype=torch.uint8, device=device)
        self.rows = torch.arange(max_rows, dtype=torch.int32, device=device)
        # Page numbers last: only as many are copied as there are.
        sizes = (max_rows + 1, max_rows, max_rows, max_rows * max_row_pages)
        self.fixed = FixedStaging(sizes, device)
        self.indptr, self.last_page_len, self.positions, self.indices = self.fixed.parts

    def fill(self, meta: BatchMeta) -> None:
        """Copy one step's metadata."""
        self.fixed.fill(meta.kv_indptr, meta.last_page_len, meta.positions, meta.kv_indices)


class FixedDecode:
    """`dopd.attention.base.Attention` for captured steps of exactly `batch_size` decode rows."""

    def __init__(
        self,
        batch_size: int,
        shape: Shape,
        layers: tuple[Tensor, ...],
        shared: FixedBuffers,
        *,
        tensor_cores: bool,
        options: dict[str, Any],
    ) -> None:
        self._batch_size, self._shape, self._layers = batch_size, shape, layers
        self._shared, self._options = shared, options
        self._slots = (shared.rows[:batch_size], shared.positions[:batch_size])
        indptr, last_page_len = shared.indptr[: batch_size + 1], shared.last_page_len[:batch_size]
        self._pages = (shared.indices, indptr, last_page_len)
        self._is_planned = False
        self._decode = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            shared.workspace,
            LAYOUT,
            use_cuda_graph=True,
            use_tensor_cores=tensor_cores,
            paged_kv_indptr_buffer=indptr,
            paged_kv_indices_buffer=shared.indices,
            paged_kv_last_page_len_buffer=last_page_len,
            backend="fa2",
        )
        self._decode.reset_workspace_buffer(shared.workspace, shared.plans)

    def plan(self, meta: BatchMeta) -> None:
        """See `GraphAttention.fixed`."""
        rows = len(meta.last_page_len)
        if not rows == meta.num_decode_rows == self._batch_size:
            raise ValueError(
                f"{rows} rows, {meta.num_decode_rows} of them decode; this view is for "
                f"{self._batch_size} that do"
            )
        self._shared.staging.wait()
        self._shared.fill(meta)
        shape = self._shape
        told = (meta.kv_indptr, meta.kv_indices, meta.last_page_len)
        dims = (shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.page_size)
        if not self._is_planned:
            self._decode.plan(*told, *dims, **self._options)
            self._is_planned = True
        else:
            # Like `plan`, which chose the kernels once and for all, without its copies.
            flashinfer.fast_decode_plan(
                self._decode,
                *told,
                *dims,
                global_override_indptr_cpu=meta.kv_indptr,
                **self._options,
            )
        self._shared.staging.mark()

    def append(self, layer: int, key: Tensor, value: Tensor) -> None:
        """See `Attention.append`."""
        flashinfer.append_paged_kv_cache(
            key, value, *self._slots, self._layers[layer], *self._pages, LAYOUT
        )

    def run(self, layer: int, query: Tensor) -> Tensor:
        """See `Attention.run`."""
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        self._decode.run(query, self._layers[layer], out=out)
        return out


class FlashInferKernels:
    """`dopd.layers.kernels.Kernels` on a GPU."""

    def __init__(self, cos: Tensor, sin: Tensor, num_heads: int, device: torch.device) -> None:
        """cos, sin: [positions, head_dim / 2] float32. num_heads: of the queries."""
        self._angles = torch.cat((cos, sin), dim=1).to(device)
        self._num_heads = num_heads

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Kernels.rms_norm`."""
        normed: Tensor = flashinfer.rmsnorm(x, weight, eps)
        return normed

    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """See `Kernels.add_rms_norm`; both arguments are overwritten."""
        flashinfer.fused_add_rmsnorm(x, residual, weight, eps)
        return x, residual

    def rotation(self, positions: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Kernels.rotation`; the heads are overwritten."""

        def rotate(heads: Tensor) -> Tensor:
            query, key = heads[:, : self._num_heads], heads[:, self._num_heads :]
            flashinfer.apply_rope_with_cos_sin_cache_inplace(
                positions, query.flatten(1), key.flatten(1), heads.shape[-1], self._angles
            )
            return heads

        return rotate

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See `Kernels.silu_mul`."""
        product: Tensor = flashinfer.silu_and_mul(gate_up)
        return product

    def keep_top(
        self, probabilities: Tensor, top_k: Sequence[int], top_p: Sequence[float]
    ) -> Tensor:
        """See `Kernels.keep_top`: in float32, and of equals at the border all stay."""
        device, size = probabilities.device, probabilities.shape[-1]
        probabilities = (probabilities / probabilities.sum(dim=-1, keepdim=True)).float()
        if any(top_k):
            most = torch.tensor([min(k or size, size) for k in top_k], dtype=torch.int32)
            probabilities = flashinfer.top_k_renorm_probs(
                probabilities, most.to(device, non_blocking=True)
            )
        if min(top_p) < 1:
            shares = torch.tensor(top_p, dtype=torch.float32).to(device, non_blocking=True)
            kept = flashinfer.top_p_renorm_probs(probabilities, shares, is_deterministic=True)
            # A share of 1 is met by rounding before the last of them is reached.
            probabilities = torch.where(shares.unsqueeze(1) < 1, kept, probabilities)
        return probabilities


def _processors(device: torch.device) -> tuple[int, int]:
    """Streaming multiprocessors of a GPU and its major compute capability; of the double's none."""
    if device.type != "cuda":
        return 0, AMPERE
    found = torch.cuda.get_device_properties(device)
    return found.multi_processor_count, found.major
