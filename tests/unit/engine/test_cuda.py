"""What the engine asks of torch.cuda, in which order, by doubles of it; nothing runs on a GPU."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch

from dopd.engine import cuda
from dopd.engine.load import load

DEVICE = torch.device("cuda", 1)


class Stream:
    """A stream that writes down what it is asked for."""

    def __init__(self, log: list[str], name: str) -> None:
        self._log, self._name = log, name

    def wait_stream(self, other: Stream) -> None:
        self._log.append(f"{self._name} waits for {other._name}")

    def synchronize(self) -> None:
        self._log.append(f"{self._name} is done")


class Event:
    """An event likewise."""

    log: list[str]

    def record(self, stream: Stream) -> None:
        self.log.append(f"mark on {stream._name}")

    def synchronize(self) -> None:
        self.log.append("mark is done")


class Graph:
    """A graph that can be replayed."""

    def replay(self) -> str:
        return "replayed"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    Event.log = made
    signature = inspect.signature(torch.cuda.graph.__init__)

    def graph(*args: Any, **options: Any) -> AbstractContextManager[None]:
        bound = signature.bind(None, *args, **options).arguments
        made.append(f"capture on {bound['stream']._name}, {bound['capture_error_mode']}")
        assert bound["pool"] == (0, 7)
        return nullcontext()

    doubles = {
        "current_stream": lambda device: Stream(made, "main"),
        "Stream": lambda device: Stream(made, "side"),
        "stream": lambda stream: nullcontext(),
        "graph_pool_handle": lambda: (0, 7),
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": graph,
    }
    for name, double in doubles.items():
        monkeypatch.setattr(torch.cuda, name, double)
    return made


def test_a_function_is_warm_before_it_is_captured(log: list[str]) -> None:
    replay = cuda.CudaCapture(DEVICE)(lambda: log.append("call"))
    assert log == [
        "side waits for main",
        *["call"] * cuda.WARM_UP_CALLS,
        "main waits for side",
        "capture on side, thread_local",
        "call",
    ]
    assert replay() == "replayed"  # type: ignore[func-returns-value]


def test_a_stream_is_the_one_that_the_engine_computes_on(log: list[str]) -> None:
    stream = cuda.CudaStream(DEVICE)
    stream.wait()
    stream.mark()
    stream.synchronise()
    assert log == ["mark is done", "mark on main", "main is done"]


def test_a_gpu_keeps_free_what_the_largest_step_graphs_and_attention_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = load("random:tiny", device="cpu", kv_memory="4MiB")
    seen: list[int] = []
    # What each of the three measured calls was told to take.
    peaks = iter([700, 20, 5])

    def peak(device: torch.device, function: Any) -> int:
        function()
        return next(peaks)

    def zeros(size: int, **options: Any) -> torch.Tensor:
        seen.append(size)
        return torch.full((size,), 0, dtype=torch.int64)

    monkeypatch.setattr(cuda, "_peak_bytes", peak)
    monkeypatch.setattr(cuda.torch, "zeros", zeros)
    reserve = cuda.reserve_bytes(engine._weights, lambda: seen.append(-1), DEVICE, 16, 64)
    assert reserve == 725 + 5 * cuda.GRAPH_BYTES
    # A graph of the most rows, a step of the most tokens, attention.
    assert seen == [16, 64, -1]
    assert cuda.reserve_bytes(engine._weights, lambda: None, torch.device("cpu"), 16, 64) == 0
