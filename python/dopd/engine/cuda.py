"""CUDA as the engine uses it: the stream it computes on, graphs, and what a step takes of memory.

The only file of the engine that captures. Used by `engine/load`; nothing here is called on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dopd.attention.base import BatchMeta
from dopd.engine.device_sampler import sample_where_it_lies
from dopd.engine.graphs import Replay
from dopd.engine.sampler import Draw
from dopd.models.llama import Llama
from dopd.types import SamplingParams

# Kernels are loaded and libraries set up at their first call, which must not happen in a capture.
WARM_UP_CALLS = 2
# What the driver keeps of a captured graph of a step, beside what its kernels allocate.
GRAPH_BYTES = 8 << 20
# A draw by all that a draw can be by: none takes more memory.
EVERYTHING = SamplingParams(temperature=1.0, top_k=50, top_p=0.9, min_p=0.01, top_logprobs=20)


class CudaStream:
    """`dopd.engine.stream.Stream`: the current stream of a device."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device)
        self._marked = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def synchronise(self) -> None:
        """See `Stream.synchronise`."""
        self._stream.synchronize()

    def mark(self) -> None:
        """See `Stream.mark`."""
        self._marked.record(self._stream)

    def wait(self) -> None:
        """See `Stream.wait`."""
        # One that was never recorded counts as done.
        self._marked.synchronize()


class CudaCapture:
    """`dopd.engine.graphs.Capture`: graphs that share one pool of memory, since one runs at a
    time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, function: Callable[[], None]) -> Replay:
        """Capture what the function gives to the device."""
        current = torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        # Before 2.15 torch leaves the side stream the current one where a capture fails: nobody
        # would wait for what is computed there.
        with torch.cuda.stream(current):
            self._side.wait_stream(current)
            try:
                with torch.cuda.stream(self._side):
                    for _ in range(WARM_UP_CALLS):
                        function()
            finally:
                # Also for what a call gave to the device before it failed.
                current.wait_stream(self._side)
            # thread_local: threads of the transports may call CUDA meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._side, capture_error_mode="thread_local"
            ):
                function()
        replay: Replay = graph.replay
        return replay


class NoAttention:
    """`dopd.attention.base.Attention` without a pool, to see what all else of a step takes."""

    def plan(self, meta: BatchMeta) -> None:
        """Nothing to plan."""

    def append(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Nowhere to write."""

    def run(self, layer: int, query: Tensor) -> Tensor:
        """Nothing was found."""
        return torch.zeros_like(query, memory_format=torch.contiguous_format)


@torch.inference_mode()
def reserve_bytes(
    weights: Llama,
    make_attention: Callable[[], object],
    device: torch.device,
    max_rows: int,
    max_tokens: int,
    graph_sizes: Sequence[int],
) -> int:
    """Bytes of a GPU that steps take for a time, graphs and attention for good; 0 on a CPU.

    Measured, by the largest step that there can be; attention by making it. graph_sizes: ascending,
    none if there are to be no graphs.
    """
    if device.type != "cuda":
        return 0
    draws = [Draw(EVERYTHING, 0)] * max_rows

    def forward(num_tokens: int) -> Tensor:
        zeros = torch.zeros(num_tokens, dtype=torch.int64, device=device)
        return weights.forward(zeros, zeros, NoAttention())

    def step() -> None:
        logits = weights.logits(forward(max(max_tokens, max_rows))[:max_rows])
        sample_where_it_lies(logits, draws, weights.kernels)

    reserve = _peak_bytes(device, step) + _peak_bytes(device, make_attention)
    if graph_sizes:
        reserve += _peak_bytes(device, lambda: forward(graph_sizes[-1]))
    return reserve + GRAPH_BYTES * len(graph_sizes)


def _peak_bytes(device: torch.device, function: Callable[[], object]) -> int:
    """Bytes that a call takes for a time, over what is held before."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_reserved(device) - before
