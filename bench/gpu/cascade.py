"""Decode steps of sequences that share a prefix: `--cascade-attention` against CUDA graphs.

With it the shared pages are read once for all rows, and the step is launched kernel by kernel;
without, every row reads them, in one graph. Both find the same pages, as the prefix cache gives
them; they differ by what is shared and by how many share it.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from bench.gpu.setup import Setup
from dopd.engine.load import load
from dopd.engine.measure import Steps
from dopd.engine.torch import TorchEngine
from dopd.kv.layout import pages_for
from dopd.types import Row, SamplingParams

# Tokens in common, tokens of each row's own, rows.
SHARED, OWN, BATCHES, TIMES = (512, 2048, 8192), 128, (8, 32, 128), 30
GREEDY = SamplingParams(temperature=0.0)


def main(setup: Setup) -> dict[str, Any]:
    """Milliseconds of a decode step by tokens shared and rows, both ways, and equal tokens."""
    ways: dict[str, Any] = {}
    for way, is_cascade in (("graphs", False), ("cascade", True)):
        engine = load(
            setup.large_model,
            device=setup.device,
            kv_memory="64MiB" if setup.small else "12GiB",
            max_model_len=1024 if setup.small else 16_384,
            gpu_memory_utilization=0.45,
            # On a CPU there is nothing to compare: a dry run.
            cascade=is_cascade and setup.device != "cpu",
        )
        torch.manual_seed(1)
        # As scattered as real keys, so that the tokens say something.
        engine.pool.tensor.normal_()
        ways[way] = engine, Steps(engine)
    cells = [(SHARED[0], 8)] if setup.small else [(one, rows) for one in SHARED for rows in BATCHES]
    return {
        "model": setup.large_model,
        "own_tokens": OWN,
        "steps": [one_cell(ways, shared, rows) for shared, rows in cells],
    }


def one_cell(ways: dict[str, Any], shared: int, num_rows: int) -> dict[str, Any]:
    """In turns; medians of steps that follow each other, as in a server."""
    took: dict[str, list[float]] = {way: [] for way in ways}
    tokens = {}
    for way, (engine, _) in ways.items():
        tokens[way] = [result.token for result in engine.step(rows_of(engine, shared, num_rows))]
    for _ in range(TIMES):
        for way, (engine, timed) in ways.items():
            timed.us(rows_of(engine, shared, num_rows, is_earlier=True))
            took[way].append(timed.us(rows_of(engine, shared, num_rows)))
    same = sum(a == b for a, b in zip(*tokens.values(), strict=True))
    medians = {f"{way}_ms": statistics.median(us) / 1e3 for way, us in took.items()}
    return {"shared_tokens": shared, "rows": num_rows, **medians, "same_tokens": same}


def rows_of(
    engine: TorchEngine, shared: int, num_rows: int, *, is_earlier: bool = False
) -> list[Row]:
    """Decode rows of one prefix, then pages of their own; is_earlier: of the step before."""
    page_size = engine.geometry.page_size
    common, own = shared // page_size, pages_for(OWN + 1, page_size)
    start = common * page_size + OWN - is_earlier
    rows = []
    for index in range(num_rows):
        first = common + index * own
        pages = [*range(common), *range(first, first + own)]
        rows.append(Row(index, [16 + index], start, pages, GREEDY, 1))
    return rows
