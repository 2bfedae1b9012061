"""FlashInfer against naive softmax on this device: the conformance suite of attention."""

from __future__ import annotations

from typing import Any

from bench.gpu import tests
from bench.gpu.setup import Setup


def main(setup: Setup) -> dict[str, Any]:
    """Counts of tests."""
    return tests.run(["tests/unit/attention"], setup)
