"""From a model's files to an engine that is ready to step.

Called by `worker/build`, tests and benches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from dopd.attention import choose
from dopd.attention.base import Attention, GraphAttention
from dopd.engine import cuda, graphs
from dopd.engine.runner import Runner
from dopd.engine.stream import HostStream, Stream
from dopd.engine.timings import Timings
from dopd.engine.torch import TorchEngine
from dopd.engine.torch_batch import RowLimits, Span
from dopd.engine.torch_device import DTYPES, choose_device, choose_dtype, device_memory, set_threads
from dopd.errors import ConfigError
from dopd.kv.budget import memory_for, pages_in
from dopd.kv.layout import LAYOUT, page_bytes, pages_for
from dopd.kv.pool import KvPool
from dopd.models.kernels import make_kernels
from dopd.models.llama import Llama
from dopd.types import KvGeometry
from dopd.weights.checkpoint import open_checkpoint
from dopd.weights.config import ModelConfig
from dopd.weights.hash import model_hash, weight_files

MAX_PAGE_SIZE = 256
# Share of a GPU's memory that one process takes for everything; vLLM's word and default.
GPU_MEMORY_UTILIZATION = 0.9

# Called with a stage, the share of it that is done (0.0 to 1.0) and the bytes that it has handled,
# 0 if it is not about bytes. Stages: "read" headers and hash, "map" weight files, "copy" weights to
# their device and dtype, "warm-up" with the pool, "graphs" of decode steps (on a GPU).
Progress = Callable[[str, float, int], None]


@contextmanager
def _told_out_of_memory() -> Iterator[None]:
    """A GPU that is too small is no fault that a restart mends. Raises ConfigError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            "the GPU has not the memory for this model's weights and its largest step: "
            f"{str(error).partition('. ')[0]}; serve fewer workers on it or a smaller model, or "
            "lower max-batch-tokens, kv-memory or gpu-memory-utilization"
        ) from error


@_told_out_of_memory()
def load(
    model: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    kv_memory: str | None = None,
    max_model_len: int | None = None,
    page_size: int = 16,
    threads: int = 1,
    name: str | None = None,
    attention: str = choose.AUTO,
    max_num_seqs: int = 256,
    max_batch_tokens: int = 8192,
    gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION,
    cuda_graphs: bool = True,
    fixed_split: bool = False,
    cascade: bool = False,
    timings: Timings | None = None,
    progress: Progress = lambda stage, share, num_bytes: None,
) -> TorchEngine:
    """Load a model and make it ready to step: seconds, and the model's size in memory.

    model: a folder of safetensors, a folder with one GGUF file, a .gguf file, or random:NAME[:SEED]
    (`weights/made_up`). dtype "auto" is bfloat16 on a GPU, float32 on a CPU. kv_memory: "512MiB",
    None for a default: on a GPU what gpu_memory_utilization leaves. max_model_len: None for what
    model and pool allow. name: None for that of the file or folder. attention: `choose.NAMES`.
    max_num_seqs, max_batch_tokens: most rows and tokens of a step. cuda_graphs: of decode steps, on
    a GPU. fixed_split: attention computes a row alike in every batch, slowly and without graphs:
    for tests. cascade: pages that all decode rows share are read once. timings: what steps take,
    None for what the warm-up says. Raises ConfigError with what to do.
    """
    if not 1 <= page_size <= MAX_PAGE_SIZE:
        raise ConfigError(f"page-size is {page_size}, must be 1 to {MAX_PAGE_SIZE}")
    set_threads(threads)
    dtype = choose_dtype(dtype, place := choose_device(device))
    attention = choose.choose(attention, place)
    weights, digest = _weights(model, max_model_len, dtype, place, attention, progress)
    config, longest = weights.config, _longest(weights.config, max_model_len)
    geometry = _geometry(config, digest, dtype, page_size)
    shape = (config.num_layers, page_size, config.num_kv_heads, config.head_dim)
    attend = partial(
        choose.make,
        attention,
        num_heads=config.num_heads,
        max_rows=max_num_seqs,
        max_row_pages=pages_for(longest, page_size),
        fixed_split=fixed_split,
        cascade=cascade,
    )
    sizes = graphs.sizes(max_num_seqs) if cuda_graphs and not fixed_split else []
    # Measured on a pool of one page, so that the real one can have all the rest.
    reserve = cuda.reserve_bytes(
        weights,
        lambda: attend(KvPool(shape, 1, DTYPES[dtype], place).tensor),
        *(place, max_num_seqs, max_batch_tokens, sizes),
    )
    memory = memory_for(kv_memory, device_memory(place, gpu_memory_utilization, reserve))
    if max_model_len is None:
        # Nobody asked for a length: what fits is better than a refusal.
        longest = min(longest, max(1, memory // geometry.page_bytes) * page_size)
    num_pages = pages_in(memory, geometry.page_bytes, page_size, longest)
    pool = KvPool(shape, num_pages, DTYPES[dtype], place, num_dummies=int(place.type == "cuda"))
    limits = RowLimits(config.vocab_size, longest, page_size, num_pages)
    runner, stream = _runner(weights, attend(pool.tensor), pool, limits, sizes, progress)
    progress("warm-up", 0.0, 0)
    engine = TorchEngine(weights, pool, geometry, name or Path(model).stem, limits, runner, stream)
    engine.warm_up(timings)
    progress("warm-up", 1.0, 0)
    return engine


def _runner(
    weights: Llama,
    attention: Attention,
    pool: KvPool,
    limits: RowLimits,
    sizes: list[int],
    progress: Progress,
) -> tuple[Runner, Stream]:
    """What computes steps on the pool's device, with graphs of these sizes if it is a GPU."""
    place = torch.device(pool.device)
    if place.type != "cuda":
        return Runner(weights, attention, place, limits), HostStream()
    stream = cuda.CudaStream(place)
    captured = make_graphs(weights, attention, pool, sizes, stream)
    if captured is not None:
        progress("graphs", 0.0, 0)
        captured.warm(cuda.CudaCapture(place), lambda share: progress("graphs", share, 0))
    return Runner(weights, attention, place, limits, captured, looks_ahead=True), stream


def make_graphs(
    weights: Llama, attention: Attention, pool: KvPool, sizes: list[int], stream: Stream
) -> graphs.DecodeGraphs | None:
    """Graphs of these sizes, not captured yet; None: without sizes, or if attention has none."""
    if not sizes or not isinstance(attention, GraphAttention):
        return None
    return graphs.DecodeGraphs(
        weights,
        attention,
        torch.zeros(
            (sizes[-1], weights.config.hidden_size),
            dtype=pool.tensor.dtype,
            device=pool.tensor.device,
        ),
        # The page behind those that anybody is told of.
        Span(0, 1, [pool.num_pages]),
        pool.page_size,
        sizes,
        stream,
    )


def _weights(
    model: str | Path,
    max_model_len: int | None,
    dtype: str,
    place: torch.device,
    attention: str,
    progress: Progress,
) -> tuple[Llama, bytes]:
    """The model on its device, and its hash."""
    progress("read", 0.0, 0)
    checkpoint, digest = open_checkpoint(model, place), model_hash(model)
    progress("read", 1.0, 0)
    progress("map", 1.0, sum(file.stat().st_size for file in weight_files(Path(model))))
    longest = _longest(checkpoint.config, max_model_len)
    progress("copy", 0.0, 0)
    weights = Llama(
        checkpoint,
        make_kernels(attention, checkpoint.config, longest, DTYPES[dtype], place),
        DTYPES[dtype],
        place,
        lambda done, num_bytes: progress("copy", done, num_bytes),
    )
    return weights, digest


def _geometry(config: ModelConfig, digest: bytes, dtype: str, page_size: int) -> KvGeometry:
    shape = (config.num_layers, page_size, config.num_kv_heads, config.head_dim)
    return KvGeometry(
        model_hash=digest,
        dtype=dtype,
        page_size=page_size,
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        layout=LAYOUT,
        tensor_parallel=1,
        page_bytes=page_bytes(dtype, *shape),
    )


def _longest(config: ModelConfig, asked: int | None) -> int:
    if asked is None:
        return config.max_positions
    if not 1 <= asked <= config.max_positions:
        raise ConfigError(f"max-model-len is {asked}, the model allows 1 to {config.max_positions}")
    return asked
