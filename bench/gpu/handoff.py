"""How fast pages travel between two processes on this device, beside a copy on the device.

Pages of Llama-3.1-8B in bf16 (2 MiB); a shipment is 64 MiB. The rate is of many shipments one
behind the other until the destination has the last.
"""

from __future__ import annotations

import statistics
from typing import Any

from bench.gpu import env
from bench.gpu.setup import Setup
from dopd.errors import DopdError
from dopd.worker.handoff_probe import Place, pair

PAGE_BYTES = 16 * 131_072
SHIPMENT_PAGES, SHIPMENTS, ROUNDS = 32, 20, 5
TRANSPORTS = {"cuda": ("cuda_ipc", "nccl", "tcp"), "cpu": ("shm", "tcp")}


def main(setup: Setup) -> dict[str, Any]:
    """Every transport of the device; why one could not be timed."""
    found: dict[str, Any] = {}
    if setup.device == "cuda":
        found["copy_bytes_per_s"] = env.copy_bytes_per_s()
    for transport in TRANSPORTS[setup.device]:
        try:
            found[transport] = measure(transport, setup)
        except DopdError as error:
            found[transport] = {"failed": str(error)}
            continue
        if "copy_bytes_per_s" in found:
            found[transport]["share_of_copy"] = (
                found[transport]["bytes_per_s"] / found["copy_bytes_per_s"]
            )
    return found


def measure(transport: str, setup: Setup) -> dict[str, float]:
    """Bytes per second of many shipments; milliseconds of one, and of one page."""
    device = "cuda:0" if setup.device == "cuda" else "cpu"
    shipments = 2 if setup.small else SHIPMENTS
    size = SHIPMENT_PAGES * PAGE_BYTES
    with pair(transport, Place(PAGE_BYTES, 2 * SHIPMENT_PAGES, device)) as source:
        many = [source.seconds(shipments, SHIPMENT_PAGES) for _ in range(ROUNDS)]
        one = [source.seconds(1, SHIPMENT_PAGES) for _ in range(2 * ROUNDS)]
        page = [source.seconds(1, 1) for _ in range(2 * ROUNDS)]
    return {
        "bytes_per_s": shipments * size / statistics.median(many),
        "shipment_ms": 1e3 * statistics.median(one),
        "page_ms": 1e3 * statistics.median(page),
    }
