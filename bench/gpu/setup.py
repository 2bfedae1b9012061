"""What a part is told: device, size, where the model is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# NVIDIA's data sheets: dense bf16 FLOP/s without sparsity, bytes/s of memory.
PEAKS = {"H100 80GB": (989e12, 3.35e12), "H200": (989e12, 4.8e12), "A100": (312e12, 2.04e12)}


@dataclass(frozen=True, slots=True)
class Setup:
    """device: "cuda" or "cpu". small: the shapes of a dry run, which says nothing of speed.

    model: the small real model, a .gguf file or a folder; None: seeded weights of its shape.
    """

    device: str = "cuda"
    small: bool = False
    model: str | None = None

    @property
    def small_model(self) -> str:
        """SmolLM2 or its shape."""
        return self.model or ("random:tiny" if self.small else "random:smollm2-135m")

    @property
    def large_model(self) -> str:
        """Llama-3.1-8B's shape with seeded weights."""
        return "random:tiny" if self.small else "random:llama-3.1-8b"


class Skipped(Exception):
    """A part cannot run here; its text says why."""


def peaks(device_name: str) -> dict[str, Any] | None:
    """Data-sheet figures of a device, if we have them."""
    for name, (flops, bytes_per_s) in PEAKS.items():
        if name in device_name:
            return {"flop_per_s": flops, "bytes_per_s": bytes_per_s}
    return None
