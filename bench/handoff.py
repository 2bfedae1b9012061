"""What a hand-off costs: 512 prompt tokens of SmolLM2 in bfloat16, over shm and TCP on loopback.

The prefill worker emits the first token when the last chunk is done, the decode worker the
second one after its first step. So: gap between tokens 1 and 2, less one decode step (median of
the later gaps), is the time from the last chunk to the start of the first decode step. A mixed
worker in the same run, measured the same way, shows what of it is not the hand-off.
One request at a time; the first ones warm up.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import random
import statistics
import sys
import time
from typing import Any

from bench.common import finish, serving

PROMPT_TOKENS = 512
OUTPUT_TOKENS = 24
WARM_UP = 3
REQUESTS = 20
PAGE_BYTES_PER_TOKEN = 23_040
TARGET_MS = 15.0
TRANSPORTS = ("shm", "tcp")


def token_times(address: str, seed: int) -> list[float]:
    """Seconds from the request to each event of its answer."""
    source = random.Random(seed)
    body = {
        "prompt": [source.randrange(1_000, 40_000) for _ in range(PROMPT_TOKENS)],
        "max_tokens": OUTPUT_TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }
    with contextlib.closing(http.client.HTTPConnection(address, timeout=60)) as connection:
        start = time.perf_counter()
        data = json.dumps(body)
        connection.request("POST", "/v1/completions", data, {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(answer.read().decode())
        events = (line for line in answer if line.startswith(b"data: {"))
        return [time.perf_counter() - start for _ in events]


def measure(*words: str) -> dict[str, Any]:
    """Medians over the requests, in milliseconds."""
    with serving("smollm2", "--dtype", "bfloat16", *words) as ready:
        for seed in range(WARM_UP):
            token_times(ready["http"], seed)
        runs = [token_times(ready["http"], 100 + seed) for seed in range(REQUESTS)]
    gaps = [[b - a for a, b in itertools.pairwise(run)] for run in runs]
    steps = [statistics.median(gap[2:]) for gap in gaps]
    over = [gap[0] - step for gap, step in zip(gaps, steps, strict=True)]
    return {
        "prefill_ms": 1e3 * statistics.median(run[0] for run in runs),
        "decode_step_ms": 1e3 * statistics.median(steps),
        "switch_ms": 1e3 * statistics.median(over),
        "switch_ms_p90": 1e3 * statistics.quantiles(over, n=10)[-1],
    }


def main(argv: list[str]) -> int:
    """Measure each transport and mixed one after the other."""
    del argv
    split = {
        way: measure("--prefill", "1", "--decode", "1", f"--worker-arg=--transports={way}")
        for way in TRANSPORTS
    }
    mixed = measure("--prefill", "0", "--decode", "0", "--mixed", "1")
    rows = {
        way: {
            **row,
            "handoff_ms": row["switch_ms"] - mixed["switch_ms"],
            "share_of_prefill": row["switch_ms"] / row["prefill_ms"],
            "is_met": row["switch_ms"] <= TARGET_MS,
        }
        for way, row in split.items()
    }
    result = {
        "prompt_tokens": PROMPT_TOKENS,
        "kv_megabytes": PROMPT_TOKENS * PAGE_BYTES_PER_TOKEN / 1e6,
        **rows,
        "mixed": mixed,
        "target_ms": TARGET_MS,
    }
    return finish("handoff", result)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
