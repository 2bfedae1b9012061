"""A few tokens through a back end before it is trusted. Called by `choose`.

Kernels that do not come ready-made are compiled at their first use, for minutes: that must not be a
request's. And those of another machine may compute nonsense.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dopd.attention.base import Attention, BatchMeta, CascadeAttention
from dopd.attention.cascade import MIN_ROWS, MIN_TOKENS
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
    if isinstance(attention, CascadeAttention):
        found += _cascade_differences(attention, pool, query, key[-1:], value[-1:])
    pool[-1].zero_()
    return found


def _cascade_differences(
    attention: CascadeAttention, pool: Tensor, query: Tensor, key: Tensor, value: Tensor
) -> list[float]:
    """The same of rows that share pages: the last page, again and again, as `_differences` left it.

    query: some; key, value: of the last token on that page.
    """
    count, page, page_size = len(query), len(pool) - 1, pool.shape[3]
    meta = _shared_rows(page, page_size, count)
    if not attention.shares(meta):
        raise ValueError(f"{MIN_ROWS} rows with {MIN_TOKENS} tokens in common are no cascade")
    attention.plan(meta)
    queries = query.repeat(-(-MIN_ROWS // count), 1, 1)[:MIN_ROWS]
    found = []
    for layer in {0, pool.shape[1] - 1}:
        attention.append(layer, *(one.expand(MIN_ROWS, -1, -1) for one in (key, value)))
        out = attention.run(layer, queries).float().cpu()
        pages = int(meta.kv_indptr[1])
        seen = pool[page, layer].float().cpu().repeat(1, pages, 1, 1)
        seen = seen[:, : (pages - 1) * page_size + count]
        expected = _reference(queries.float().cpu(), *seen, is_causal=False)
        found.append(float((out - expected).abs().max()))
    return found


def _shared_rows(page: int, page_size: int, end: int) -> BatchMeta:
    """Decode rows of one page, over and over, and of its first `end` tokens."""
    full = -(-MIN_TOKENS // page_size)
    rows = torch.arange(MIN_ROWS + 1, dtype=torch.int32)
    ones = torch.ones(MIN_ROWS, dtype=torch.int32)
    return BatchMeta(
        qo_indptr=rows,
        kv_indptr=rows * (full + 1),
        kv_indices=torch.full((MIN_ROWS * (full + 1),), page, dtype=torch.int32),
        last_page_len=ones * end,
        positions=ones * (full * page_size + end - 1),
        slot_pages=ones * page,
        slot_offsets=ones * (end - 1),
        num_decode_rows=MIN_ROWS,
    )


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


def _reference(*parts: Tensor, is_causal: bool = True) -> Tensor:
    """Attention of query, key and value, [tokens, heads, head_dim] each."""
    query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in parts)
    out = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, enable_gqa=True)
    return out.squeeze(0).transpose(0, 1)
