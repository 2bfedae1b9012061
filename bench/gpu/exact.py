"""Greedy tokens: alone, batched, chunked, with and without graphs, and on the CPU.

In fp32, which only the torch back end computes in, all ways on one device must agree token for
token; against the CPU, whose sums have another order, they may part at near-ties: how many do is
told. In bf16 graphs must agree with the same steps without; where the rows of a step change they
are padded to another size, whose products may be summed in another order: that is told as well.
"""

from __future__ import annotations

from typing import Any

from bench.gpu.setup import Setup
from dopd.engine.load import load
from dopd.engine.torch import TorchEngine
from tests.support import stepping

PROMPTS = [[(7 * i + 3 * j) % 190 + 16 for j in range(3 + 11 * i % 120)] for i in range(24)]
NUM_TOKENS = 48
# Of these all rows go on to the end: their number is a graph's.
STEADY = ("alone", "batched")


def main(setup: Setup) -> dict[str, Any]:
    """How many of the prompts agree. Raises RuntimeError if ways on one device differ."""
    found = in_ways(make(setup, setup.device, dtype="float32", attention="torch"))
    first = found["alone"]
    same = {way: count_same(tokens, first) for way, tokens in found.items()}
    cpu = answers(make(setup, "cpu", dtype="float32", attention="torch"), PROMPTS)
    result: dict[str, Any] = {"prompts": len(PROMPTS), "tokens_each": NUM_TOKENS, "same": same}
    must = list(same.values())
    if setup.device != "cpu":
        result["same_with_graphs"] = with_graphs = graphs(setup)
        must += [with_graphs[way] for way in STEADY]
    if min(must) < len(PROMPTS):
        raise RuntimeError(f"ways on one device differ: {result}")
    return result | {"same_as_cpu": count_same(cpu, first)}


def graphs(setup: Setup) -> dict[str, int]:
    """Of each way, how many prompts have with graphs the tokens that they have without."""
    found = {}
    for has_graphs in (True, False):
        # Rows are split alike with and without: by what the device holds at once.
        options = {"dtype": "bfloat16", "cuda_graphs": has_graphs, "fixed_split": False}
        engine = make(setup, setup.device, **options)
        found[has_graphs] = in_ways(engine)
        del engine
    return {way: count_same(found[True][way], found[False][way]) for way in found[True]}


def in_ways(engine: TorchEngine) -> dict[str, list[list[int]]]:
    """Tokens of each prompt, by way."""
    return {
        "alone": [answers(engine, [prompt])[0] for prompt in PROMPTS],
        "batched": answers(engine, PROMPTS),
        "chunked": answers(engine, PROMPTS, 16),
    }


def make(setup: Setup, device: str, **options: Any) -> TorchEngine:
    """The small model, attention split alike whatever the batch, where there are no graphs."""
    return load(
        setup.small_model,
        device=device,
        kv_memory="64MiB" if setup.small else "1GiB",
        max_model_len=1024,
        gpu_memory_utilization=0.4,
        **{"fixed_split": True, **options},
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
