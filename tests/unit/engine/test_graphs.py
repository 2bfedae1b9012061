"""Decode graphs: any mix of rows gives the tokens that it gives without them, and pads nobody."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dopd.engine.graphs import MAX_GRAPH_ROWS, is_alike, sizes
from dopd.engine.load import load
from dopd.engine.stream import HostStream
from dopd.engine.torch import TorchEngine
from dopd.errors import DopdError
from dopd.kv.layout import pages_for
from dopd.sched.pages import PageAllocator
from dopd.types import Row, Sampled, SamplingParams
from tests.support import reference, stepping
from tests.support.cases import cases
from tests.support.gpu.graph_engine import with_graphs
from tests.support.gpu.recorded import RecordedCapture

SIZES = [1, 2, 4, 6]
NUM_TOKENS = 18
PROMPTS = [[5, 9, 300, 7], list(range(40, 71)), [17] * 15, [3], [200, 100] * 8, [44] * 40]
NUM_PAGES = 40
PAGE_SIZE = 16
# In every page that nobody may write: no value that the model would compute.
UNTOUCHED = 12345.0
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    folder: Path = tmp_path_factory.mktemp("tiny")
    reference.tiny_llama().save_pretrained(folder)
    return load(folder, dtype="float32", device="cpu", kv_memory="4MiB", name="tiny")


@pytest.fixture(scope="module")
def expected(plain: TorchEngine) -> list[list[int]]:
    return stepping.run(plain, stepping.start(plain, PROMPTS, NUM_TOKENS), NUM_TOKENS)


@pytest.fixture(scope="module")
def capture() -> RecordedCapture:
    return RecordedCapture()


@pytest.fixture(scope="module")
def engine(plain: TorchEngine, capture: RecordedCapture) -> TorchEngine:
    made = with_graphs(plain, SIZES, capture, NUM_PAGES)
    assert capture.captured == len(SIZES)
    return made


@pytest.mark.parametrize(
    ("max_num_seqs", "chosen"),
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (8, [1, 2, 4, 8]),
        (20, [1, 2, 4, 8, 16, 20]),
        (32, [1, 2, 4, 8, 16, 24, 32]),
    ],
)
def test_sizes_end_with_the_largest_batch(max_num_seqs: int, chosen: list[int]) -> None:
    assert sizes(max_num_seqs) == chosen


@given(st.integers(1, 4096))
def test_sizes_are_near_every_batch(max_num_seqs: int) -> None:
    chosen = sizes(max_num_seqs)
    most = min(max_num_seqs, MAX_GRAPH_ROWS)
    assert chosen == sorted(set(chosen)) and chosen[-1] == most
    for num_rows in range(1, most + 1):
        size = next(size for size in chosen if size >= num_rows)
        assert size < 2 * num_rows and size - num_rows < 8


def start(data: st.DataObject) -> list[stepping.Running]:
    """All prompts on pages drawn at random, with the first token made in steps of their own."""
    counts = [pages_for(len(prompt) + NUM_TOKENS, PAGE_SIZE) for prompt in PROMPTS]
    pages = iter(data.draw(st.permutations(range(NUM_PAGES))))
    return [
        stepping.Running(prompt, [next(pages) for _ in range(count)], GREEDY)
        for prompt, count in zip(PROMPTS, counts, strict=True)
    ]


@cases(12)
@given(st.data())
def test_any_mix_of_rows_gives_the_tokens_it_gives_without_graphs(
    engine: TorchEngine, capture: RecordedCapture, expected: list[list[int]], data: st.DataObject
) -> None:
    """Rows join, end, pause and change places; chunks of prompts come between."""
    running = start(data)
    owned = {page for sequence in running for page in sequence.pages}
    engine.pool.tensor.fill_(UNTOUCHED)
    before = capture.replays
    for _ in range(NUM_TOKENS):
        chosen = data.draw(st.lists(st.sampled_from(running), unique_by=id, min_size=1))
        chosen = [one for one in chosen if len(one.drawn) < NUM_TOKENS]
        for _ in range(data.draw(st.integers(1, 4)) if chosen else 0):
            if all(len(one.drawn) < NUM_TOKENS for one in chosen):
                stepping.step(engine, chosen, data.draw(st.sampled_from([3, 64])))
    stepping.run(engine, running, NUM_TOKENS)
    assert [one.tokens for one in running] == expected
    assert capture.replays > before
    for page in set(range(NUM_PAGES)) - owned:
        assert bool((engine.pool.tensor[page] == UNTOUCHED).all()), f"page {page} was written"


def test_steps_of_decode_rows_alone_are_replayed(
    engine: TorchEngine, capture: RecordedCapture, expected: list[list[int]]
) -> None:
    running = stepping.start(engine, PROMPTS[:3], NUM_TOKENS, GREEDY)
    before = capture.replays
    stepping.step(engine, running)
    assert capture.replays == before, "a step with prompts"
    stepping.run(engine, running, NUM_TOKENS)
    assert capture.replays - before == NUM_TOKENS - 1
    assert [one.tokens for one in running] == expected[:3]


def test_more_rows_than_the_largest_graph_has_are_computed_without(
    plain: TorchEngine, expected: list[list[int]]
) -> None:
    capture = RecordedCapture()
    engine = with_graphs(plain, [1, 2], capture)
    running = stepping.start(engine, PROMPTS, NUM_TOKENS, GREEDY)
    before = capture.replays
    assert stepping.run(engine, running, NUM_TOKENS) == expected
    assert capture.replays == before


def test_nobody_is_granted_the_dummy_page(engine: TorchEngine) -> None:
    allocator = PageAllocator(engine.pool.num_pages)
    pages = allocator.allocate(engine.pool.num_pages)
    assert pages is not None and max(pages) == engine.pool.num_pages - 1
    assert allocator.allocate(1) is None
    # Not even by mistake.
    (fault,) = engine.step([Row(0, [1], 0, [engine.pool.num_pages], GREEDY, 0)])
    assert isinstance(fault, DopdError) and "outside the pool" in str(fault)


def failing(at: int) -> tuple[RecordedCapture, Callable[[Callable[[], None]], Callable[[], None]]]:
    """A capture that fails the at-th time."""
    recorded, calls = RecordedCapture(), iter(range(100))

    def capture(function: Callable[[], None]) -> Callable[[], None]:
        if next(calls) == at:
            raise RuntimeError("operation not permitted when stream is capturing")
        return recorded(function)

    return recorded, capture


def test_a_size_that_cannot_be_captured_runs_without_and_says_so(
    plain: TorchEngine, expected: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    # The largest comes first: 6, then 4.
    recorded, capture = failing(at=1)
    engine = with_graphs(plain, SIZES, capture)
    assert recorded.captured == 3
    assert "no CUDA graph of 4 sequences" in caplog.text and "not permitted" in caplog.text
    before = recorded.replays
    for count, is_replayed in ((3, False), (4, False), (2, True), (6, True)):
        running = stepping.start(engine, PROMPTS[:count], NUM_TOKENS, GREEDY)
        assert stepping.run(engine, running, NUM_TOKENS) == expected[:count]
        assert (recorded.replays > before) == is_replayed, count
        before = recorded.replays


def test_a_function_that_looks_at_results_cannot_be_captured(
    plain: TorchEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """The double is strict: else what passes here would fail on a GPU."""

    def capture(function: Callable[[], None]) -> Callable[[], None]:
        return RecordedCapture()(lambda: [function(), torch.zeros(1).item()] and None)

    engine = with_graphs(plain, [2], capture)
    assert "no CUDA graph of 2 sequences" in caplog.text
    assert isinstance(engine.step([Row(0, [1], 0, [3], GREEDY, 0)])[0], Sampled)


def test_a_graph_that_computes_something_else_is_not_used(
    plain: TorchEngine, expected: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    engine = with_graphs(plain, SIZES, lambda function: lambda: None)
    assert caplog.text.count("its replay computes something else") == len(SIZES)
    running = stepping.start(engine, PROMPTS, NUM_TOKENS, GREEDY)
    assert stepping.run(engine, running, NUM_TOKENS) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_other_result(dtype: torch.dtype) -> None:
    """Residuals of real models: a few numbers in the thousands, the others near one."""
    generator = torch.Generator().manual_seed(2)
    expected = torch.randn((3, 512), generator=generator)
    expected[:, 7] = 3000.0
    # A last bit of the large ones, spread by the layers over all.
    rounded = expected + torch.randn((3, 512), generator=generator) * 0.5
    assert is_alike(rounded.to(dtype), expected.to(dtype))
    one_row = expected.clone()
    one_row[1] = expected[1].roll(1)
    broken = expected.clone()
    broken[2, 3] = float("nan")
    for found in (torch.zeros_like(expected), one_row, broken, expected * 1.1):
        assert not is_alike(found.to(dtype), expected.to(dtype))


def test_a_device_that_fails_in_a_capture_ends_the_start(plain: TorchEngine) -> None:
    class Gone(HostStream):
        def synchronise(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    _, capture = failing(at=0)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        with_graphs(plain, SIZES, capture, stream=Gone())


def test_progress_goes_to_the_end(plain: TorchEngine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    engine = with_graphs(plain, SIZES, RecordedCapture())
    graphs = engine._runner._graphs
    assert graphs is not None
    heard: list[float] = []
    graphs.warm(RecordedCapture(), heard.append)
    assert heard == [0.25, 0.5, 0.75, 1.0]
