"""The CUDA branch from `load` to tokens, on a pretended GPU that is as strict as a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from dopd.attention import choose, flashinfer_shape
from dopd.attention.base import Attention
from dopd.engine import cuda
from dopd.engine.foresight import Foresight
from dopd.engine.load import load
from dopd.engine.torch import TorchEngine
from dopd.engine.torch_device import CONTEXT_BYTES
from dopd.types import LogitAdjustments, SamplingParams
from tests.support import stepping
from tests.support.gpu import pretend, stub_flashinfer
from tests.support.gpu.pretend import PretendGpu
from tests.support.gpu.tables import TableAttention, TableView

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU is pretended only where there is none"
)

DEVICE = torch.device("cuda", 1)
NUM_TOKENS = 18
PROMPTS = [[5, 9, 300, 7], list(range(40, 71)), [17] * 15, [3], [200, 100] * 8]
GREEDY = SamplingParams(temperature=0.0)
# One of each kind, for the prompts in turn.
DRAWS = [
    GREEDY,
    SamplingParams(temperature=0.7, seed=1),
    SamplingParams(top_k=5, seed=2),
    SamplingParams(top_p=0.8, seed=3, top_logprobs=2),
    SamplingParams(min_p=0.1, seed=4),
]


@pytest.fixture(scope="module")
def plain() -> TorchEngine:
    return load_on("cpu")


@pytest.fixture(scope="module")
def expected(plain: TorchEngine) -> list[list[int]]:
    return stepping.run(plain, stepping.start(plain, PROMPTS, NUM_TOKENS, GREEDY), NUM_TOKENS)


@pytest.fixture
def gpu(plain: TorchEngine) -> Iterator[PretendGpu]:
    with pretend.installed(DEVICE) as made:
        yield made


@pytest.fixture
def captured(gpu: PretendGpu, monkeypatch: pytest.MonkeyPatch) -> TorchEngine:
    """With attention that can be captured."""

    def tables(name: str, pool: torch.Tensor, num_heads: int, **limits: int) -> Attention:
        return TableAttention(pool, limits["max_row_pages"])

    monkeypatch.setattr(choose, "make", tables)
    return load_on("cuda:1")


@pytest.fixture
def flashinfer(gpu: PretendGpu, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Its double, in float32 as well; it cannot be recorded, so a replay calls it again."""
    double = stub_flashinfer
    for owner, name in (
        (double, "append_paged_kv_cache"),
        (double, "fast_decode_plan"),
        (double.BatchDecodeWithPagedKVCacheWrapper, "plan"),
        (double.BatchPrefillWithPagedKVCacheWrapper, "plan"),
        (double._Wrapper, "run"),
    ):
        monkeypatch.setattr(owner, name, gpu.kernel(getattr(owner, name)))
    monkeypatch.setattr(flashinfer_shape, "DTYPES", (torch.float32,))
    monkeypatch.setattr(flashinfer_shape, "MIN_WORKSPACE_BYTES", 1 << 20)
    monkeypatch.setattr(cuda.CudaCapture, "__call__", lambda self, function: called(function))
    with stub_flashinfer.installed():
        yield


def called(function: Callable[[], None]) -> Callable[[], None]:
    def replay() -> None:
        with stub_flashinfer.capturing():
            function()

    return replay


def load_on(device: str, **options: object) -> TorchEngine:
    given = {"attention": "torch", "kv_memory": "4MiB", "max_num_seqs": 6} | options
    return load(
        "random:tiny",
        dtype="float32",
        device=device,
        max_model_len=128,
        max_batch_tokens=64,
        **given,  # type: ignore[arg-type]
    )


def test_decode_steps_are_replayed_and_wait_once(
    captured: TorchEngine, gpu: PretendGpu, expected: list[list[int]]
) -> None:
    assert captured.device == "cuda:1 Pretended GPU" and gpu.captured == 4
    running = stepping.start(captured, PROMPTS, NUM_TOKENS, GREEDY)
    stepping.run(captured, running, 3)
    before, gpu.waits = gpu.replays, []
    stepping.step(captured, running)
    # What was drawn comes to the host, and the step is over.
    assert gpu.waits == ["tolist", "synchronize"]
    assert stepping.run(captured, running, NUM_TOKENS) == expected
    assert gpu.replays - before == NUM_TOKENS - 3
    # The first of them came after the prompts.
    assert (captured.foresight.hits, captured.foresight.misses) == (NUM_TOKENS - 2, 0)


def test_the_warm_up_times_decode_steps_that_were_planned_ahead(
    gpu: PretendGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those are that the brain predicts with it."""
    told: list[bool] = []
    monkeypatch.setattr(Foresight, "count", lambda self, *, is_hit: told.append(is_hit))
    engine = load_on("cuda:1")
    # One token without context, and one with; nobody guesses a prompt.
    assert told == [True, True]
    assert engine.foresight == Foresight()
    # And leaves no page that is not clean.
    assert not bool(engine.pool.tensor[:-1].any())


def test_draws_of_every_kind_are_the_cpus_and_wait_once(
    plain: TorchEngine, captured: TorchEngine, gpu: PretendGpu
) -> None:
    found = []
    for engine in (plain, captured):
        running = stepping.start(engine, PROMPTS, NUM_TOKENS)
        for one, sampling in zip(running, DRAWS, strict=True):
            one.sampling = sampling
        stepping.run(engine, running, 3)
        gpu.waits = []
        stepping.step(engine, running)
        found.append(stepping.run(engine, running, NUM_TOKENS))
        if engine is captured:
            # Log probabilities are a copy more; 14 steps follow.
            assert gpu.waits[:3] == ["tolist", "tolist", "synchronize"]
            assert gpu.waits == gpu.waits[:3] * (NUM_TOKENS - 3)
    assert found[0] == found[1]


def test_rows_that_are_adjusted_or_scored(plain: TorchEngine, captured: TorchEngine) -> None:
    found = []
    for engine in (plain, captured):
        running = stepping.start(engine, PROMPTS, NUM_TOKENS, GREEDY)
        running[0].adjustments = LogitAdjustments(0.5, bias=((7, 3.0),))
        running[1].num_top = 3
        tokens = stepping.run(engine, running, NUM_TOKENS, budget=8)
        told = [[pair[0] for pair in one.top] for one in running[1].scored]
        found.append((tokens, told))
    assert found[0] == found[1]


def test_a_capture_that_cannot_be_leaves_a_worker_that_computes(
    gpu: PretendGpu,
    request: pytest.FixtureRequest,
    expected: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = TableView.run

    def looks(view: TableView, layer: int, query: torch.Tensor) -> torch.Tensor:
        view._lengths.tolist()
        return run(view, layer, query)

    monkeypatch.setattr(TableView, "run", looks)
    engine = request.getfixturevalue("captured")
    assert gpu.captured == 0 and caplog.text.count("no CUDA graph of") == 4
    running = stepping.start(engine, PROMPTS, NUM_TOKENS, GREEDY)
    assert stepping.run(engine, running, NUM_TOKENS) == expected
    assert gpu.replays == 0


def test_without_graphs_none_is_captured(gpu: PretendGpu, expected: list[list[int]]) -> None:
    engine = load_on("cuda:1", cuda_graphs=False)
    running = stepping.start(engine, PROMPTS, NUM_TOKENS, GREEDY)
    assert stepping.run(engine, running, NUM_TOKENS, budget=16) == expected
    assert gpu.captured == 0
    # Planned ahead all the same.
    assert engine.foresight.hits > NUM_TOKENS - 6


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_flashinfer_gets_all_it_needs_there_and_in_time(
    gpu: PretendGpu, flashinfer: None, expected: list[list[int]], cuda_graphs: bool
) -> None:
    engine = load_on("cuda:1", attention="auto", cuda_graphs=cuda_graphs)
    graphs = engine._runner._graphs
    assert (graphs is not None and graphs.fit(3) == 4) == cuda_graphs
    running = stepping.start(engine, PROMPTS, NUM_TOKENS, GREEDY)
    for one, sampling in zip(running[1:], DRAWS[1:], strict=True):
        one.sampling = sampling
    assert stepping.run(engine, running, NUM_TOKENS, budget=16)[0] == expected[0]
    assert gpu.given > 2 * NUM_TOKENS, "copies from pinned memory"


def test_the_pool_takes_what_is_left_of_the_share(gpu: PretendGpu, flashinfer: None) -> None:
    engine = load_on("cuda:1", attention="auto", kv_memory=None, gpu_memory_utilization=0.75)
    reserve = 3 * pretend.PEAK + 4 * cuda.GRAPH_BYTES
    left = int(0.75 * pretend.TOTAL) - CONTEXT_BYTES - reserve
    assert engine.pool.num_pages == left // engine.pool.page_bytes
    # The page behind them is for rows that only fill up.
    assert len(engine.pool.tensor) == engine.pool.num_pages + 1


def test_pages_are_filled_and_read_there(captured: TorchEngine, gpu: PretendGpu) -> None:
    pool = captured.pool
    pool.fill([3, 5], 255)
    assert [bool(pool.tensor[page].isnan().all()) for page in range(7)] == [
        page in (3, 5) for page in range(7)
    ]
    whole = b"".join(pool.chunks([2, 3], None))
    assert whole == bytes(pool.page_bytes) + b"\xff" * pool.page_bytes
    assert b"".join(pool.chunks([3, 2], 8)) == b"\xff" * 16 + bytes(16)


def test_a_kernel_that_failed_ends_the_worker_whatever_was_said_of_it(
    captured: TorchEngine, gpu: PretendGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries have words of their own for it: a row must not be blamed."""
    (running,) = stepping.start(captured, PROMPTS[:1], NUM_TOKENS, GREEDY)

    def failed(*_: object) -> None:
        gpu.is_broken = True
        raise RuntimeError("BatchPrefill failed with error an illegal memory access")

    monkeypatch.setattr(TableAttention, "run", failed)
    with pytest.raises(torch.AcceleratorError):
        captured.step([running.row(0, 4)])
