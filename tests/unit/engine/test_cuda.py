"""What the engine asks of torch.cuda, in which order, by doubles of it; nothing runs on a GPU."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

from dopd.engine import cuda
from dopd.engine.load import load
from dopd.errors import ConfigError

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


class Current:
    """Which stream is the current one."""

    stream: Stream


class Graph:
    """A graph that can be replayed."""

    def replay(self) -> str:
        return "replayed"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    Event.log = made
    Current.stream = Stream(made, "main")
    signature = inspect.signature(torch.cuda.graph.__init__)

    @contextmanager
    def as_current(stream: Stream) -> Iterator[None]:
        before, Current.stream = Current.stream, stream
        try:
            yield
        finally:
            Current.stream = before

    @contextmanager
    def capturing(stream: Stream) -> Iterator[None]:
        """As torch before 2.15: whoever fails inside leaves the stream behind."""
        before, Current.stream = Current.stream, stream
        yield
        Current.stream = before

    def graph(*args: Any, **options: Any) -> AbstractContextManager[None]:
        bound = signature.bind(None, *args, **options).arguments
        made.append(f"capture on {bound['stream']._name}, {bound['capture_error_mode']}")
        assert bound["pool"] == (0, 7)
        return capturing(bound["stream"])

    doubles = {
        "current_stream": lambda device: Current.stream,
        "Stream": lambda device: Stream(made, "side"),
        "stream": as_current,
        "graph_pool_handle": lambda: (0, 7),
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": graph,
    }
    for name, double in doubles.items():
        monkeypatch.setattr(torch.cuda, name, double)
    return made


def test_a_function_is_warm_before_it_is_captured(log: list[str]) -> None:
    replay = cuda.CudaCapture(DEVICE)(lambda: log.append(f"call on {Current.stream._name}"))
    assert log == [
        "side waits for main",
        *["call on side"] * cuda.WARM_UP_CALLS,
        "main waits for side",
        "capture on side, thread_local",
        "call on side",
    ]
    assert replay() == "replayed"  # type: ignore[func-returns-value]


@pytest.mark.parametrize("at", range(cuda.WARM_UP_CALLS + 1))
def test_a_capture_that_fails_leaves_the_engine_on_its_stream(log: list[str], at: int) -> None:
    """Else the end of a step would be waited for on a stream that has nothing to do."""
    calls = iter(range(9))

    def failing() -> None:
        if next(calls) == at:
            raise ValueError("operation not permitted when stream is capturing")

    with pytest.raises(ValueError, match="not permitted"):
        cuda.CudaCapture(DEVICE)(failing)
    assert Current.stream._name == "main"
    # Nor does what the calls before gave to the device run beside what comes next.
    assert "main waits for side" in log


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
    drawn: list[Any] = []
    # What each of the measured calls was told to take.
    peaks = iter([700, 20, 5, 600, 10])

    def peak(device: torch.device, function: Any) -> int:
        function()
        return next(peaks)

    def zeros(size: int, **options: Any) -> torch.Tensor:
        seen.append(size)
        return torch.full((size,), 0, dtype=torch.int64)

    monkeypatch.setattr(cuda, "_peak_bytes", peak)
    monkeypatch.setattr(cuda.torch, "zeros", zeros)
    # On the device, draws take several tables of all logits.
    monkeypatch.setattr(cuda, "sample_where_it_lies", lambda *args: drawn.append(args))
    weights = engine._weights
    reserve = cuda.reserve_bytes(weights, lambda: seen.append(-1), DEVICE, 16, 64, [1, 8, 16])
    assert reserve == 725 + 3 * cuda.GRAPH_BYTES
    # A step of the most tokens, attention, a graph of the most rows.
    assert seen == [64, -1, 16]
    (logits, draws, kernels) = drawn[0]
    assert logits.shape == (16, engine.vocab_size) and kernels is weights.kernels
    params = draws[0].params
    assert len(draws) == 16 and params.top_k and params.top_p < 1 and params.top_logprobs
    # Without graphs none is kept free for them.
    assert cuda.reserve_bytes(weights, lambda: None, DEVICE, 16, 64, []) == 610
    assert cuda.reserve_bytes(weights, lambda: None, torch.device("cpu"), 16, 64, [1]) == 0


def test_a_gpu_that_is_too_small_is_told_and_no_restart_is_worth_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr("dopd.engine.load._weights", too_large)
    with pytest.raises(ConfigError, match="largest step: CUDA out of memory; serve fewer workers"):
        load("random:tiny", device="cpu")
