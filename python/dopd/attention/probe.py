"""A few tokens through a back end before it is trusted. Called by `choose`.

Kernels that do not come ready-made are compiled at their first use, for minutes: that must not be a
request's. And those of another machine may compute nonsense.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dopd.attention.base import Attention, BatchMeta
from dopd.errors import ConfigError

MAX_TOKENS = 4
# Largest difference from float32, of values that are drawn from a normal distribution.
TOLERANCE = {torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float32: 1e-4}


@torch.inference_mode()
def probe(attention: Attention, pool: Tensor, num_heads: int) -> None:
    """Prefill and decode on the last page, which is zeros before and afterwards.

    pool: [pages, layers, 2, page, kv_heads, head_dim], in use by nobody. Raises ConfigError.
    """
    try:
        worst = _differences(attention, pool, num_heads)
    except Exception as error:
        raise ConfigError(
            f"attention flashinfer does not run on {pool.device} ({type(error).__name__}: {error}):"
            " kernels that did not come ready-made are compiled, which needs nvcc and ninja; "
            "--attention torch does without, slowly"
        ) from error
    if not all(one <= TOLERANCE[pool.dtype] for one in worst):
        raise ConfigError(
            f"attention flashinfer computes wrong numbers on {pool.device} (off by {max(worst):g} "
            f"in {pool.dtype}); give --attention torch, and report this device"
        )


def _differences(attention: Attention, pool: Tensor, num_heads: int) -> list[float]:
    _, num_layers, _, page_size, num_kv_heads, head_dim = pool.shape
    count = min(page_size, MAX_TOKENS)
    drawn = torch.randn(
        (count, num_heads + 2 * num_kv_heads, head_dim), generator=torch.Generator().manual_seed(1)
    )
    heads = drawn.to(pool.device, pool.dtype)
    query = heads[:, :num_heads]
    key, value = heads[:, num_heads:].chunk(2, dim=1)
    expected = _reference(*(part.float().cpu() for part in (query, key, value)))
    found = []
    for start, num_decode_rows in ((0, 0), (count - 1, 1)):
        attention.plan(_row(len(pool) - 1, start, count, num_decode_rows))
        for layer in {0, num_layers - 1}:
            attention.append(layer, key[start:], value[start:])
            out = attention.run(layer, query[start:]).float().cpu()
            found.append(float((out - expected[start:]).abs().max()))
    pool[-1].zero_()
    return found


def _row(page: int, start: int, end: int, num_decode_rows: int) -> BatchMeta:
    """One row of tokens [start, end) on one page."""
    positions = torch.arange(start, end, dtype=torch.int32)
    return BatchMeta(
        qo_indptr=torch.tensor([0, end - start], dtype=torch.int32),
        kv_indptr=torch.tensor([0, 1], dtype=torch.int32),
        kv_indices=torch.tensor([page], dtype=torch.int32),
        last_page_len=torch.tensor([end], dtype=torch.int32),
        positions=positions,
        slot_pages=torch.full_like(positions, page),
        slot_offsets=positions,
        num_decode_rows=num_decode_rows,
    )


def _reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention, [tokens, heads, head_dim] each."""
    query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return out.squeeze(0).transpose(0, 1)
