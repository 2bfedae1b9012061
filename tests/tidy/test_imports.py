"""What a module really loads, in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Loading these takes seconds (torch) or is of no use to a mock worker.
HEAVY = ("torch", "numpy", "transformers", "safetensors", "gguf", "rich", "matplotlib")
LIGHT = (
    "dopd.types",
    "dopd.errors",
    "dopd.env",
    "dopd.wire",
    "dopd.sched",
    "dopd.transfer",
    "dopd.engine.base",
    "dopd.engine.mock",
    "dopd.worker",
    "dopd.worker.__main__",
    "dopd.cli",
    "dopd.cli.app",
    "dopd.cli.bench.load",
    "dopd.cli.simulate",
    "dopd.sim",
    "dopd.sim.study",
    "dopd.brain",
)
QUICK = ("dopd", "dopd.cli", "dopd.cli.app", "dopd.cli.status")


def loaded_by(module: str) -> set[str]:
    """Top-level packages in sys.modules after importing `module`."""
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", LIGHT)
def test_loads_nothing_heavy(module: str) -> None:
    assert not loaded_by(module) & set(HEAVY)


@pytest.mark.parametrize("module", QUICK)
def test_loads_no_grpc(module: str) -> None:
    assert "grpc" not in loaded_by(module)
