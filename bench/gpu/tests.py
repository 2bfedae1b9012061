"""The project's tests that need a GPU, and the engine's others on that machine."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

from bench.common import REPO
from bench.gpu.setup import Setup

FOLDERS = ("attention", "engine", "kv", "layers", "models", "transfer")


def main(setup: Setup) -> dict[str, Any]:
    """Counts. Raises RuntimeError if a test fails."""
    return run([f"tests/unit/{folder}" for folder in FOLDERS], setup)


def run(words: list[str], setup: Setup) -> dict[str, Any]:
    """pytest WORDS: how many passed, failed, were skipped, and why."""
    if setup.small:
        words = ["--collect-only", *words]
    options = ["-q", "-rs", "-p", "no:cacheprovider", "-p", "no:randomly"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *words],
        cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout[-20_000:], done.stderr[-4000:], sep="\n", flush=True)
    counts = {
        kind: int(number)
        for number, kind in re.findall(r"(\d+) (passed|failed|error|skipped|tests)", done.stdout)
    }
    if done.returncode != 0:
        raise RuntimeError(f"pytest ended with {done.returncode}: {counts}")
    return {"counts": counts, "skipped": re.findall(r"SKIPPED \[(.*)", done.stdout)}
