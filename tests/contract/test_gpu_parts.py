"""The parts of bench/gpu run as they stand: dry, on the CPU, with tiny shapes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import __main__ as runner
from bench.gpu.setup import Setup, Skipped

DRY = Setup("cpu", small=True)


def run(name: str) -> dict[str, Any]:
    found: dict[str, Any] = importlib.import_module(f"bench.gpu.{name}").main(DRY)
    return found


def test_every_part_is_a_module() -> None:
    folder = Path(runner.__file__).parent
    shared = {"__init__", "__main__", "part", "setup"}
    assert {path.stem for path in folder.glob("*.py")} - shared == set(runner.PARTS)
    # A machine is lent for ten minutes at a time.
    assert max(runner.PARTS.values()) < 600


def test_graphs_and_eager_steps_make_the_same_tokens() -> None:
    batches = run("graphs")["batches"]
    assert {batch: found["same_tokens"] for batch, found in batches.items()} == {1: 1, 8: 8}


def test_ways_on_one_device_agree() -> None:
    found = run("exact")
    assert set(found["same"].values()) == {found["prompts"]} == {found["same_as_cpu"]}


def test_hand_off_is_timed_over_what_there_is() -> None:
    found = run("handoff")
    assert found["shm"]["bytes_per_s"] > 0 and found["tcp"]["page_ms"] > 0


def test_nccl_is_for_gpus() -> None:
    with pytest.raises(Skipped):
        run("nccl")
