"""Shapes and page arithmetic of the KV cache. The one place that knows the layout's name and order.

Pool: [num_pages, num_layers, 2, page_size, num_kv_heads, head_dim], axis 2 is key, value
("page_major_nhd"): a page is one contiguous block over all layers, so a transport moves it without
gathering.
"""

from __future__ import annotations

LAYOUT = "page_major_nhd"
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def page_bytes(
    dtype: str, page_size: int, num_layers: int, num_kv_heads: int, head_dim: int
) -> int:
    """Bytes of one page over all layers, keys and values."""
    return DTYPE_BYTES[dtype] * num_layers * 2 * page_size * num_kv_heads * head_dim


def pages_for(num_tokens: int, page_size: int) -> int:
    """Pages that hold num_tokens."""
    return -(-num_tokens // page_size)
