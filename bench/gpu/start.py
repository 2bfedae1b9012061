"""From Enter to the first token with graphs captured: `dopd serve MODEL` on this device."""

from __future__ import annotations

from typing import Any

from bench.common import DOPD, free_port
from bench.gpu.setup import Setup
from bench.start import first_token_s

RUNS = 3
FLEETS = {"mixed": ["--mixed", "1"], "split": ["--prefill", "1", "--decode", "1"]}


def main(setup: Setup) -> dict[str, Any]:
    """Seconds of each run, both models; the first finds no kernel compiled and no file cached."""
    found: dict[str, Any] = {}
    for model in dict.fromkeys((setup.small_model, setup.large_model)):
        for fleet, words in FLEETS.items():
            found[f"{model} {fleet}"] = [
                one(model, words) for _ in range(1 if setup.small else RUNS)
            ]
    return found


def one(model: str, words: list[str]) -> float:
    """A server of its own."""
    port = free_port()
    others = ["--grpc-port", "0", "--worker-port", "0", "--metrics-port", "0"]
    return first_token_s([*DOPD, "serve", model, *words, "--port", str(port), *others], port)
