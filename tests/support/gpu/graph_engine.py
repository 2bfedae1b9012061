"""A real engine on the CPU with decode graphs and plan ahead, over doubles of a GPU's part."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dopd.attention.base import Attention
from dopd.engine.graphs import Capture
from dopd.engine.load import make_graphs
from dopd.engine.runner import Runner
from dopd.engine.stream import HostStream, Stream
from dopd.engine.torch import TorchEngine
from dopd.engine.torch_batch import RowLimits
from dopd.kv.layout import pages_for
from dopd.kv.pool import KvPool
from tests.support.gpu.tables import TableAttention

CPU = torch.device("cpu")


def with_graphs(
    plain: TorchEngine,
    sizes: Sequence[int],
    capture: Capture,
    num_pages: int = 64,
    stream: Stream | None = None,
    make_attention: Callable[[torch.Tensor, int], Attention] = TableAttention,
) -> TorchEngine:
    """An engine over the weights of `plain` with a pool of its own."""
    stream = stream or HostStream()
    weights, geometry = plain._weights, plain.geometry
    shape = (geometry.num_layers, geometry.page_size, geometry.num_kv_heads, geometry.head_dim)
    pool = KvPool(shape, num_pages, plain.pool.tensor.dtype, CPU, num_dummies=1)
    limits = RowLimits(plain.vocab_size, plain.max_model_len, pool.page_size, num_pages)
    attention = make_attention(pool.tensor, pages_for(plain.max_model_len, pool.page_size))
    graphs = make_graphs(weights, attention, pool, list(sizes), stream)
    assert graphs is not None
    graphs.warm(capture, lambda share: None)
    runner = Runner(weights, attention, CPU, limits, graphs, looks_ahead=True)
    return TorchEngine(weights, pool, geometry, "graphs", limits, runner, stream)
