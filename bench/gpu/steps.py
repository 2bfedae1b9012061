"""Prefill and decode of both models by `dopd bench engine`, and shares of what the device can do.

FLOPs of a prompt: 2 per weight and token, 4 per head dimension and pair that it attends to, in
every layer. Bytes of a decode step: all weights once, and the KV of every sequence.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.common import DOPD, REPO
from bench.gpu.setup import Setup, peaks
from dopd.weights.checkpoint import open_checkpoint
from dopd.weights.config import ModelConfig

PREFILLS, BATCHES = (512, 2048, 8192), (1, 8, 32, 64, 128)
BF16_BYTES = 2


def main(setup: Setup) -> dict[str, Any]:
    """One report a model."""
    return {name: of_model(name, setup) for name in {setup.small_model, setup.large_model}}


def of_model(model: str, setup: Setup) -> dict[str, Any]:
    """The whole report of the command, and the shares."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        size = ["--quick", "--repeat", "2", "--kv-memory", "64MiB"] if setup.small else []
        command = [*DOPD, "bench", "engine", "--model", model, "--device", setup.device]
        subprocess.run([*command, *size, "--json", str(file)], cwd=REPO, check=True)
        report: dict[str, Any] = json.loads(file.read_text())
    config = open_checkpoint(model).config
    name = torch.cuda.get_device_name() if setup.device == "cuda" else "cpu"
    report["shares"] = shares(report["cells"], config, peaks(name))
    return report


def shares(
    cells: list[dict[str, Any]], config: ModelConfig, peak: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Of the steps that the issue names: tokens a second, share of the data sheet's figures."""
    found = []
    for cell in cells:
        is_prefill = cell["chunk"] in PREFILLS and not cell["before"] and not cell["batch"]
        is_decode = cell["batch"] in BATCHES and not cell["chunk"]
        if not (is_prefill or is_decode):
            continue
        seconds = cell["us"] / 1e6
        row = {"tokens_per_s": (cell["chunk"] + cell["batch"]) / seconds}
        if peak and is_prefill:
            row["share_of_flops"] = flops(config, cell["chunk"]) / seconds / peak["flop_per_s"]
        if peak and is_decode:
            moved = bytes_read(config, cell["batch"], cell["context"])
            row["share_of_bandwidth"] = moved / seconds / peak["bytes_per_s"]
        keep = ("chunk", "batch", "context", "us")
        found.append({key: cell[key] for key in keep} | row)
    return found


def weights(config: ModelConfig) -> int:
    """Numbers in the matrices of all layers and of the head."""
    query = config.num_heads * config.head_dim
    kv = config.num_kv_heads * config.head_dim
    layer = config.hidden_size * (2 * query + 2 * kv + 3 * config.intermediate_size)
    return config.num_layers * layer + config.vocab_size * config.hidden_size


def flops(config: ModelConfig, tokens: int) -> float:
    """Of a prompt; the head is computed for its last token only."""
    head = config.vocab_size * config.hidden_size
    pairs = tokens * (tokens + 1) / 2
    attention = 4 * config.num_heads * config.head_dim * pairs * config.num_layers
    return 2 * (weights(config) - head) * tokens + 2 * head + attention


def bytes_read(config: ModelConfig, batch: int, context: int) -> float:
    """Of a decode step in bf16."""
    kv = 2 * config.num_layers * config.num_kv_heads * config.head_dim * BF16_BYTES
    return BF16_BYTES * weights(config) + batch * (context + 1) * kv


if __name__ == "__main__":
    sys.exit(print(json.dumps(main(Setup()))))
