"""Greedy tokens in fp32: alone, batched, chunked, with and without graphs, and on the CPU.

On one device all ways must agree token for token; against the CPU, whose sums have another order,
they may part at near-ties: how many do is told.
"""

from __future__ import annotations

from typing import Any

from bench.gpu.setup import Setup
from dopd.engine.load import load
from dopd.engine.torch import TorchEngine
from tests.support import stepping

PROMPTS = [[(7 * i + 3 * j) % 190 + 16 for j in range(3 + 11 * i % 120)] for i in range(24)]
NUM_TOKENS = 48


def main(setup: Setup) -> dict[str, Any]:
    """How many of the prompts agree. Raises RuntimeError if ways on one device differ."""
    ways = {}
    for name, has_graphs in (("graphs", True), ("eager", False)):
        engine = make(setup, setup.device, cuda_graphs=has_graphs)
        ways[f"{name}, alone"] = [answers(engine, [prompt])[0] for prompt in PROMPTS]
        ways[f"{name}, batched"] = answers(engine, PROMPTS)
        ways[f"{name}, chunked"] = answers(engine, PROMPTS, 16)
        del engine
    first = next(iter(ways.values()))
    same = {way: count_same(found, first) for way, found in ways.items()}
    cpu = answers(make(setup, "cpu"), PROMPTS)
    result = {"prompts": len(PROMPTS), "tokens_each": NUM_TOKENS, "same": same}
    if min(same.values()) < len(PROMPTS):
        raise RuntimeError(f"ways on one device differ: {result}")
    return result | {"same_as_cpu": count_same(cpu, first)}


def make(setup: Setup, device: str, **options: Any) -> TorchEngine:
    """The small model in fp32, attention split alike whatever the batch."""
    return load(
        setup.small_model,
        dtype="float32",
        device=device,
        kv_memory="64MiB" if setup.small else "1GiB",
        max_model_len=1024,
        gpu_memory_utilization=0.4,
        fixed_split=True,
        **options,
    )


def answers(
    engine: TorchEngine, prompts: list[list[int]], budget: int = stepping.UNBOUNDED
) -> list[list[int]]:
    """Tokens of each prompt, all in one batch."""
    running = stepping.start(engine, prompts, NUM_TOKENS)
    stepping.run(engine, running, NUM_TOKENS, budget)
    return [sequence.tokens for sequence in running]


def count_same(found: list[list[int]], expected: list[list[int]]) -> int:
    """Equal answers."""
    return sum(a == b for a, b in zip(found, expected, strict=True))
