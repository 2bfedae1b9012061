"""How fast pages travel from one process to another: shm and TCP on loopback, beside memcpy.

Pages of SmolLM2 in bfloat16 (360 KiB); a shipment is 512 tokens of it, 32 pages, 11.8 MB. The three
take turns in one run, so that a neighbour hits them alike. *Rate*: shipments one behind the other
until the destination has the last. *Shipment*: one alone, and *page*: one page alone, as the last
of a hand-off is: from the first Write until its End, which a source says when all is written, is
known to have arrived; one way back included. memcpy copies the same pages inside of one process.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from typing import Any

from bench.common import Meter, finish
from dopd.kv.bytes_pool import BytesPool
from dopd.worker.handoff_probe import Place, pair

PAGE_BYTES = 23_040 * 16
SHIPMENT_PAGES = 32
NUM_PAGES = 128
SHIPMENTS = 40
ROUNDS = 9
ALONE = 10
PLACE = Place(PAGE_BYTES, NUM_PAGES)
KINDS = ("shm", "tcp")


def memcpy_seconds(pool: BytesPool, num_shipments: int) -> float:
    """The same pages to the same places, inside of this process."""
    start = time.perf_counter()
    for _ in range(num_shipments):
        for page in range(SHIPMENT_PAGES):
            pool.page(NUM_PAGES // 2 + page)[:] = pool.page(page)
    return time.perf_counter() - start


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Median, best and worst."""
    chosen = {"median": statistics.median(seconds), "best": min(seconds), "worst": max(seconds)}
    return {name: 1e3 * value for name, value in chosen.items()}


def main(argv: list[str]) -> int:
    """Measure all three in turns."""
    gib = SHIPMENTS * SHIPMENT_PAGES * PAGE_BYTES / (1 << 30)
    rates: dict[str, list[float]] = {"memcpy": [], **{kind: [] for kind in KINDS}}
    shipment: dict[str, list[float]] = {kind: [] for kind in KINDS}
    page: dict[str, list[float]] = {kind: [] for kind in KINDS}
    cpu: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    foreign: list[float] = []
    with contextlib.ExitStack() as stack:
        sources = {kind: stack.enter_context(pair(kind, PLACE)) for kind in KINDS}
        pool = sources["shm"].pool
        assert isinstance(pool, BytesPool)
        memcpy_seconds(pool, 1)
        for _ in range(ROUNDS):
            rates["memcpy"].append(gib / memcpy_seconds(pool, SHIPMENTS))
            for kind, source in sources.items():
                meter = Meter({"source": os.getpid(), "destination": source.pid})
                with meter.running():
                    rates[kind].append(gib / source.seconds(SHIPMENTS, SHIPMENT_PAGES))
                cpu[kind] += sum(meter.used_ns.values()) / 1e9 / (ROUNDS * gib)
                foreign.append(meter.foreign)
                shipment[kind] += [source.seconds(1, SHIPMENT_PAGES) for _ in range(ALONE)]
                page[kind] += [source.seconds(1, 1) for _ in range(ALONE)]
    result: dict[str, Any] = {
        "page_bytes": PAGE_BYTES,
        "shipment_megabytes": SHIPMENT_PAGES * PAGE_BYTES / 1e6,
        "rounds": ROUNDS,
        "foreign_cores": {"median": statistics.median(foreign), "worst": max(foreign)},
        "gib_per_s": {
            k: {"median": statistics.median(v), "best": max(v)} for k, v in rates.items()
        },
        "shipment_ms": {kind: milliseconds(times) for kind, times in shipment.items()},
        "page_ms": {kind: milliseconds(times) for kind, times in page.items()},
        "cpu_s_per_gib": cpu,
        "shm_to_memcpy": statistics.median(rates["shm"]) / statistics.median(rates["memcpy"]),
        "shm_to_tcp": statistics.median(rates["shm"]) / statistics.median(rates["tcp"]),
    }
    return finish("transfer", result)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
