"""Decode steps as CUDA graphs against the same steps without: tokens, times, gap between replays.

The gap: what a decode step takes on the host's clock beyond what the device computes, which is what
the same work takes where nobody waits for it before the end.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from bench.gpu.setup import Setup
from dopd.engine.load import load
from dopd.engine.measure import Shape, Steps
from dopd.engine.torch import TorchEngine

BATCHES, CONTEXT, TIMES = (1, 8, 32, 64, 128), 512, 30


def main(setup: Setup) -> dict[str, Any]:
    """Milliseconds of a decode step by batch, with and without graphs, and equal tokens."""
    found: dict[str, Any] = {"model": setup.large_model, "batches": {}}
    steps = {}
    for way, has_graphs in (("graphs", True), ("eager", False)):
        # Two engines share the device, one after the other would not take turns.
        engine = load(
            setup.large_model,
            device=setup.device,
            kv_memory="64MiB" if setup.small else "12GiB",
            max_model_len=1024,
            cuda_graphs=has_graphs,
            gpu_memory_utilization=0.45,
        )
        steps[way] = engine, Steps(engine)
    for batch in BATCHES[:2] if setup.small else BATCHES:
        found["batches"][batch] = one_batch(steps, batch)
    found["planned_ahead"] = {
        way: {"hits": timed.ahead.hits, "misses": timed.ahead.misses}
        for way, (_, timed) in steps.items()
    }
    return found


def one_batch(steps: dict[str, Any], batch: int) -> dict[str, Any]:
    """In turns; medians."""
    took: dict[str, list[float]] = {way: [] for way in steps}
    tokens = {}
    for way, (engine, timed) in steps.items():
        rows = timed.rows(Shape(batch=batch, context=CONTEXT))
        tokens[way] = [result.token for result in engine.step(rows)]
    for _ in range(TIMES):
        for way, (_, timed) in steps.items():
            took[way].append(timed.shape_us(Shape(batch=batch, context=CONTEXT)))
    same = sum(a == b for a, b in zip(*tokens.values(), strict=True))
    found = {f"{way}_ms": statistics.median(us) / 1e3 for way, us in took.items()}
    engine = steps["graphs"][0]
    if engine.pool.device != "cpu":
        found["device_ms"] = device_ms(engine, batch)
        found["gap"] = found["graphs_ms"] / found["device_ms"] - 1
    return found | {"same_tokens": same}


@torch.inference_mode()
def device_ms(engine: TorchEngine, batch: int) -> float:
    """What the device takes for the layers, the head and the draw of the step that was last."""
    graphs = engine._runner._graphs
    assert graphs is not None
    size = graphs.fit(batch)
    if size is None:
        raise RuntimeError(f"there is no graph of {batch} sequences: see the log")
    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(TIMES):
        graphs._replays[size]()
        engine._weights.logits(graphs._hidden[:batch]).max(dim=-1)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / TIMES
