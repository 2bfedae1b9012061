"""The parts of bench/gpu run as they stand: dry, on the CPU, with tiny shapes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import __main__ as runner
from bench.gpu import cascade, exact, graphs
from bench.gpu.setup import Setup, Skipped
from dopd.attention import flashinfer_shape
from dopd.engine import cuda
from dopd.engine import graphs as engine_graphs
from tests.support.gpu import pretend, stub_flashinfer

DRY = Setup("cpu", small=True)
ON_GPU = Setup("cuda", small=True)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One that is pretended, and FlashInfer's double, whose replays call it again."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is pretended only where there is none")
    monkeypatch.setattr(pretend, "TOTAL", 4 << 30)
    monkeypatch.setattr(flashinfer_shape, "MIN_WORKSPACE_BYTES", 1 << 20)
    monkeypatch.setattr(engine_graphs, "MAX_GRAPH_ROWS", 4)
    monkeypatch.setattr(cuda.CudaCapture, "__call__", lambda self, function: function)
    with pretend.installed(torch.device("cuda", 0)), stub_flashinfer.installed():
        yield


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


def test_the_parts_that_load_engines_load_them_on_a_gpu(
    gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In dtypes that FlashInfer has kernels for."""
    monkeypatch.setattr(exact, "PROMPTS", exact.PROMPTS[:2])
    monkeypatch.setattr(exact, "NUM_TOKENS", 4)
    found = exact.main(ON_GPU)
    assert found["same"] == found["same_with_graphs"] == dict.fromkeys(found["same"], 2)
    # A fixed split has none: graphs would have been compared with nothing but themselves.
    assert "fast" in stub_flashinfer.State.plans
    monkeypatch.setattr(graphs, "BATCHES", (1, 4))
    monkeypatch.setattr(graphs, "CONTEXT", 40)
    monkeypatch.setattr(graphs, "TIMES", 2)
    told = graphs.main(ON_GPU)
    assert told["batches"][4]["device_ms"] > 0 and "gap" in told["batches"][4]
    assert told["planned_ahead"]["graphs"] == {"hits": 4, "misses": 0}


def test_rows_that_share_a_prefix_make_the_same_tokens() -> None:
    (cell,) = run("cascade")["steps"]
    assert (cell["rows"], cell["same_tokens"]) == (8, 8)
    assert cell["graphs_ms"] > 0 and cell["cascade_ms"] > 0


def test_the_cascade_part_merges_on_a_gpu(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cascade, "TIMES", 2)
    (cell,) = cascade.main(ON_GPU)["steps"]
    # Two layers: the check as memory is measured and at the start, and each step.
    assert stub_flashinfer.State.merges == 2 * (2 + 1 + 2 * 2)
    assert cell["same_tokens"] >= 7


def test_ways_on_one_device_agree() -> None:
    found = run("exact")
    assert set(found["same"].values()) == {found["prompts"]} == {found["same_as_cpu"]}


def test_hand_off_is_timed_over_what_there_is() -> None:
    found = run("handoff")
    assert found["shm"]["bytes_per_s"] > 0 and found["tcp"]["page_ms"] > 0


def test_nccl_is_for_gpus() -> None:
    with pytest.raises(Skipped):
        run("nccl")
