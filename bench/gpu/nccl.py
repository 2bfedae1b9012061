"""Pages over NCCL between two processes on one GPU: right, killed in the middle, and how fast."""

from __future__ import annotations

from typing import Any

from bench.gpu import handoff, tests
from bench.gpu.setup import Setup, Skipped


def main(setup: Setup) -> dict[str, Any]:
    """Tests of the transport with the real library, then its rate."""
    if setup.device == "cpu":
        raise Skipped("NCCL moves device memory")
    found = tests.run(["tests/unit/transfer", "-k", "nccl"], setup)
    return found | {"rate": handoff.measure("nccl", setup)}
