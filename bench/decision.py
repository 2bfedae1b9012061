"""What a decision of the brain costs: CPU time from an event to its actions, as a curve.

    cargo build --release -p dopd-core --example decision
    python -m bench.decision

Workers x requests waiting; arrivals (aim: p50 <= 5 us and p99 <= 20 us), wakes, reports; and what
a millisecond made due: an arrival with all wakes that follow at once, in a large fleet several
prompts at some of them. Each contains readings of the clock (`clock_ns`).
Quoted for comparison, on machines like this: 14-218 us for a text-tree policy over round robin,
88 us-1.5 ms for Dynamo's select.
"""

from __future__ import annotations

import json
import subprocess
import sys

from bench.common import binary, finish

WORKERS = (8, 100, 1_000)
WAITING = (0, 10_000, 100_000)
TIMES = 5_000
P50_MAX_NS = 5_000
P99_MAX_NS = 20_000


def main(argv: list[str]) -> int:
    """Run every cell, say how each arrival did, and write the result."""
    if argv:
        raise SystemExit("decision takes no arguments")
    example = str(binary("examples/decision"))
    cells = []
    for workers in WORKERS:
        for waiting in WAITING:
            command = [example, str(workers), str(waiting), str(TIMES)]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            cell = json.loads(out)
            arrival, due = cell["arrival"], cell["due"]
            cell["is_met"] = arrival["p50_ns"] <= P50_MAX_NS and arrival["p99_ns"] <= P99_MAX_NS
            print(
                f"{workers:>5} workers {waiting:>7} waiting: {arrival['p50_ns'] / 1e3:.1f} us, "
                f"p99 {arrival['p99_ns'] / 1e3:.1f} us, with what is due "
                f"{due['p50_ns'] / 1e3:.1f}, p99 {due['p99_ns'] / 1e3:.1f}"
            )
            cells.append(cell)
    return finish("decision", {"aim_ns": {"p50": P50_MAX_NS, "p99": P99_MAX_NS}, "cells": cells})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
