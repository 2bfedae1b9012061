"""What KV admission by future peak is worth against reserving the longest answer. Simulated.

    python -m bench.peak

One mixed worker with the step times of an H100 that serves an 8B model, and a backlog: the first
thousands of a trace wait at time 0 and are taken by arrival, so that nothing but the pool bounds
how many run. Every request asks for the longest answer of its trace, as clients do that do
not know. The ways of admission are the brain's own; the rest of the policy is the default without
limits on time. Each trace in the order of its file, and in random order, mean
of three: forgetting follows lengths that drift, it does not foresee them.

- running: sequences that decode, mean over the run.
- preempted: per 1,000 requests; pages were needed, the sequence is computed again.
- faster: time of the run with whole reservations over the time of this one.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from typing import Any

from bench.common import finish, skip
from bench.sim_cells import SOURCES, data
from dopd import sim

SEEDS = (1, 2, 3)
# Trace, tokens of the pool, requests. 400,000 tokens are about what an H100 has beside an 8B model;
# code is bound by time there, and one answer of r1 may fill more than half of the small pool.
CELLS = (
    ("conv", 60_000, 4_000),
    ("conv", 400_000, 4_000),
    ("code", 60_000, 4_000),
    ("m-large", 60_000, 4_000),
    ("m-large", 400_000, 4_000),
    ("r1", 400_000, 2_000),
)
POLICY = "pull-dyn-fcfs"
# What of the policy differs; `brim` lets pools fill whole, by default 7 % stay for what grows.
WAYS: dict[str, dict[str, Any]] = {
    "whole": {"reserve": "max_tokens"},
    "peak": {},
    "brim": {"place_kv_ratio": 1.0},
}
# Nothing is late, nothing too slow: the longest that a target may be.
TTFT_MS, TPOT_MS = 3_600_000, 60_000


def backlog(trace: sim.Trace, requests: int, seed: int | None) -> sim.Trace:
    """Its first requests, all at once; shuffled among all of the trace with a seed."""
    rows = list(zip(trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True))
    if seed is not None:
        random.Random(seed).shuffle(rows)
    prompts, answers = zip(*rows[:requests], strict=True)
    return sim.Trace.of([0.0] * len(prompts), prompts, answers)


def run(trace: sim.Trace, pool: int, longest: int, way: str) -> dict[str, float]:
    """One run; raises RuntimeError if anybody has no answer."""
    found = sim.simulate(
        trace,
        policy=POLICY,
        workers=1,
        kv_tokens=pool,
        num_seqs_max=4_096,
        max_tokens=longest,
        slo_ttft_ms=TTFT_MS,
        slo_tpot_ms=TPOT_MS,
        rules=WAYS[way],
    )
    counts, seconds = found.figures["counts"], found.figures["duration_s"]
    if counts["finished"] != len(trace):
        raise RuntimeError(f"{counts['finished']} of {len(trace)} were answered in {seconds:.0f} s")
    decoding = (found.columns["end_us"] - found.columns["first_us"]).sum() / 1e6
    return {
        "running": float(decoding / seconds),
        "preempted_per_1000": 1_000 * counts["preemptions"] / len(trace),
        "seconds": float(seconds),
    }


def compare(traces: list[sim.Trace], pool: int, longest: int) -> dict[str, Any]:
    """All ways on the same traces, each figure the mean over them."""
    runs = {way: [run(trace, pool, longest, way) for trace in traces] for way in WAYS}
    mean = {
        way: {name: statistics.fmean(one[name] for one in found) for name in found[0]}
        for way, found in runs.items()
    }
    whole, peak = mean["whole"], mean["peak"]
    return {
        "running": {way: round(one["running"], 1) for way, one in mean.items()},
        "running_ratio": round(peak["running"] / whole["running"], 2),
        "preempted_per_1000": {
            way: round(one["preempted_per_1000"], 2) for way, one in mean.items()
        },
        "faster": round(whole["seconds"] / peak["seconds"], 2),
    }


def cell(name: str, pool: int, requests: int) -> dict[str, Any]:
    """One trace on one pool, in both orders."""
    trace = sim.load(data() / "traces" / SOURCES[name].file)
    longest = int(trace.output_tokens.max())
    found: dict[str, Any] = {
        "trace": name,
        "pool_tokens": pool,
        "requests": requests,
        "max_tokens": longest,
        "file_order": compare([backlog(trace, requests, None)], pool, longest),
        "random_order": compare([backlog(trace, requests, seed) for seed in SEEDS], pool, longest),
    }
    for order in ("file_order", "random_order"):
        one = found[order]
        print(
            f"{name}, {pool} tokens, {order}: {one['running']['peak']} run instead of "
            f"{one['running']['whole']} (x{one['running_ratio']}), "
            f"{one['preempted_per_1000']['peak']} of 1000 preempted; simulated",
            flush=True,
        )
    return found


def main(argv: list[str]) -> int:
    """Measure and write it down."""
    argparse.ArgumentParser(prog="python -m bench.peak").parse_args(argv)
    if not (data() / "traces").is_dir():
        return skip("peak", f"no traces in {data()}; set DOPD_DATA")
    cells = [cell(*one) for one in CELLS]
    result = {"simulated": True, "policy": POLICY, "ways": WAYS, "seeds": SEEDS}
    return finish("peak", result | {"cells": cells})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
