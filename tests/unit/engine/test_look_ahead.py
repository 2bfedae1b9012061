"""Planning a step while the one before is computed: used only if exactly that step comes."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dopd.engine.load import load
from dopd.engine.stream import HostStream
from dopd.engine.torch import TorchEngine
from dopd.errors import DopdError
from dopd.types import Row, SamplingParams
from tests.support import reference, stepping
from tests.support.gpu.graph_engine import with_graphs
from tests.support.gpu.recorded import RecordedCapture
from tests.support.gpu.tables import TableAttention, TableView

NUM_TOKENS = 20
# None of them comes to the end of a page at the same step as another.
PROMPTS = [[5, 9, 300, 7], [8] * 17, [17] * 30]
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    folder: Path = tmp_path_factory.mktemp("tiny")
    reference.tiny_llama().save_pretrained(folder)
    return load(folder, dtype="float32", device="cpu", kv_memory="4MiB", name="tiny")


@pytest.fixture(scope="module")
def expected(plain: TorchEngine) -> list[list[int]]:
    return stepping.run(plain, stepping.start(plain, PROMPTS, NUM_TOKENS), NUM_TOKENS)


@pytest.fixture
def engine(plain: TorchEngine) -> TorchEngine:
    return with_graphs(plain, [1, 2, 4], RecordedCapture())


def begun(engine: TorchEngine, tokens: int = 3) -> list[stepping.Running]:
    """All prompts, computed, and with so many tokens; the counts begin after that."""
    running = stepping.start(engine, PROMPTS, NUM_TOKENS, GREEDY)
    stepping.run(engine, running, tokens)
    engine.foresight.hits = engine.foresight.misses = 0
    return running


def counts(engine: TorchEngine) -> tuple[int, int]:
    return engine.foresight.hits, engine.foresight.misses


def test_a_batch_that_goes_on_is_always_foreseen(
    engine: TorchEngine, expected: list[list[int]]
) -> None:
    running = begun(engine)
    assert stepping.run(engine, running, NUM_TOKENS) == expected
    assert counts(engine) == (NUM_TOKENS - 3, 0)


def test_what_was_foreseen_is_not_planned_again(engine: TorchEngine) -> None:
    running = begun(engine)
    attention = engine._runner._attention
    assert isinstance(attention, TableAttention)
    before = attention.views[4].plans
    for _ in range(5):
        stepping.step(engine, running)
    # One a step, and that is for the next one.
    assert attention.views[4].plans - before == 5


def leave(running: list[stepping.Running]) -> list[stepping.Running]:
    return running[:2]


def turn_round(running: list[stepping.Running]) -> list[stepping.Running]:
    """The longest becomes the shortest by beginning anew, so rows are sorted otherwise."""
    running[2].computed, running[2].drawn = 0, []
    return running


def swap_pages(running: list[stepping.Running]) -> list[stepping.Running]:
    """A page is another's now, with what was in it: as when a choice takes one from the cache."""
    running[0].pages[0] = 50
    return running


@pytest.mark.parametrize("change", [leave, turn_round, swap_pages])
def test_a_batch_that_changes_is_planned_anew(
    engine: TorchEngine,
    expected: list[list[int]],
    change: Callable[[list[stepping.Running]], list[stepping.Running]],
) -> None:
    running = begun(engine)
    engine.pool.tensor[50] = engine.pool.tensor[running[0].pages[0]]
    stepping.step(engine, change(running))
    assert counts(engine) == (0, 1)
    assert stepping.run(engine, running, NUM_TOKENS) == expected


def test_a_step_that_is_computed_again_gives_the_same(engine: TorchEngine) -> None:
    running = begun(engine)
    rows = [one.row(slot, 1) for slot, one in enumerate(running)]
    assert engine.step(rows) == engine.step(rows)
    assert counts(engine) == (1, 1)


def test_a_step_that_failed_after_the_guess_is_planned_again(
    engine: TorchEngine, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is computed row by row then, which takes the plan of the guess away."""
    running = begun(engine)
    drawing = "dopd.engine.torch.sample_where_it_lies"
    monkeypatch.setattr(drawing, failing_once(drawing))
    assert stepping.run(engine, running, NUM_TOKENS) == expected


def failing_once(name: str) -> Callable[..., object]:
    original = pkgutil.resolve_name(name)
    calls = iter(range(1000))

    def maybe(*args: object) -> object:
        if next(calls) == 0:
            raise ValueError("of all together")
        return original(*args)

    return maybe


def test_one_that_joins_is_a_miss_and_then_foreseen(
    engine: TorchEngine, expected: list[list[int]]
) -> None:
    running = begun(engine)
    pair = running[:2]
    stepping.step(engine, pair)
    stepping.step(engine, pair)
    assert counts(engine) == (1, 1)
    stepping.step(engine, running)
    stepping.step(engine, running)
    assert counts(engine) == (2, 2)
    assert stepping.run(engine, running, NUM_TOKENS) == expected


def test_a_page_that_comes_with_the_next_step_is_not_guessed(
    engine: TorchEngine, expected: list[list[int]]
) -> None:
    """4 tokens of the prompt and 12 of the answer fill the first page."""
    (sequence,) = stepping.start(engine, PROMPTS[:1], NUM_TOKENS, GREEDY)
    later = sequence.pages[1:]
    del sequence.pages[1:]
    stepping.run(engine, [sequence], 13)
    guessed = counts(engine)
    sequence.pages += later
    stepping.step(engine, [sequence])
    assert counts(engine) == guessed, "neither a hit nor a miss"
    assert stepping.run(engine, [sequence], NUM_TOKENS) == expected[:1]


def test_a_sequence_at_its_end_is_not_guessed_beyond_it(engine: TorchEngine) -> None:
    """Attention has no room for more than the longest sequence."""
    last = engine.max_model_len - 1
    row = Row(0, [1], last, list(range(17)), GREEDY, 1)
    for _ in range(3):
        assert not isinstance(engine.step([row])[0], Exception)
    assert counts(engine) == (0, 0)


@pytest.mark.parametrize("page", [-1, 64])
def test_a_page_outside_of_the_pool_is_not_guessed(
    engine: TorchEngine, expected: list[list[int]], page: int
) -> None:
    """The row's next page is looked at when it is the row's turn: 64 is the dummy, -1 nobody's."""
    (sequence,) = stepping.start(engine, PROMPTS[:1], NUM_TOKENS, GREEDY)
    good = sequence.pages[1]
    sequence.pages[1] = page
    stepping.run(engine, [sequence], 13)
    rows = [sequence.row(0, 1)]
    (fault,) = engine.step(rows)
    assert isinstance(fault, DopdError) and "outside the pool" in str(fault)
    sequence.pages[1] = good
    assert stepping.run(engine, [sequence], NUM_TOKENS) == expected[:1]


def test_a_faulty_row_costs_the_others_nothing(
    engine: TorchEngine, expected: list[list[int]]
) -> None:
    running = begun(engine)
    rows = [one.row(slot, 1) for slot, one in enumerate(running)]
    good = list(rows[1].tokens)
    rows[1].tokens = [1 << 20]
    results = engine.step(rows)
    assert isinstance(results[1], Exception) and "vocabulary" in str(results[1])
    rows[1].tokens = good
    again = engine.step(rows)
    assert [results[0], results[2]] == [again[0], again[2]]
    assert stepping.run(engine, running, NUM_TOKENS) == expected


def test_a_guess_that_fails_leaves_the_step_alone(
    engine: TorchEngine,
    expected: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    running = begun(engine)
    plan = TableView.plan
    calls = iter(range(1000))

    def failing(view: TableView, meta: object) -> None:
        if next(calls) % 2:
            raise ValueError("no room for a plan")
        plan(view, meta)  # type: ignore[arg-type]

    monkeypatch.setattr(TableView, "plan", failing)
    assert stepping.run(engine, running, NUM_TOKENS) == expected
    assert "could not be prepared ahead: no room for a plan" in caplog.text


class Watched(HostStream):
    """Fails if host memory is written again that a copy may still be read from."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.staged: torch.Tensor | None = None
        self._marked: torch.Tensor | None = None

    def synchronise(self) -> None:
        self.log.append("synchronise")

    def mark(self) -> None:
        self.log.append("mark")
        self._marked = None if self.staged is None else self.staged.clone()

    def wait(self) -> None:
        self.log.append("wait")
        if self._marked is not None and self.staged is not None:
            assert torch.equal(self.staged, self._marked), "written while it is copied"
        self._marked = None


def test_inputs_are_not_overwritten_while_they_are_copied(
    plain: TorchEngine, expected: list[list[int]]
) -> None:
    stream = Watched()
    engine = with_graphs(plain, [1, 2, 4], RecordedCapture(), stream=stream)
    graphs = engine._runner._graphs
    assert graphs is not None
    stream.staged = graphs._staged
    running = begun(engine)
    stream.log.clear()
    assert stepping.run(engine, running, NUM_TOKENS) == expected
    assert stream.log == ["wait", "mark", "synchronise"] * (NUM_TOKENS - 3)


def test_a_step_is_done_when_it_returns_even_if_it_draws_nothing(plain: TorchEngine) -> None:
    """Its pages are told as written, and its time is learnt."""
    stream = Watched()
    engine = with_graphs(plain, [1], RecordedCapture(), stream=stream)
    stream.log.clear()
    assert engine.step([Row(0, [1, 2, 3], 0, [0], None, 0)]) == [None]
    assert stream.log == ["synchronise"]


def test_a_step_that_failed_is_done_when_it_returns_as_well(
    plain: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pages are free then, and a peer may write to them."""
    stream = Watched()
    engine = with_graphs(plain, [1], RecordedCapture(), stream=stream)
    stream.log.clear()

    def failing(*_: object) -> None:
        raise ValueError("after the layers")

    monkeypatch.setattr(engine._weights, "logits", failing)
    (result,) = engine.step([Row(0, [1, 2, 3], 0, [0], SamplingParams(), 0)])
    assert isinstance(result, ValueError)
    assert stream.log == ["synchronise"]


def test_pages_are_clean_when_the_warm_up_returns(plain: TorchEngine) -> None:
    """A peer may write to them from then on."""
    stream = Watched()
    engine = with_graphs(plain, [1], RecordedCapture(), stream=stream)
    were_clean: list[bool] = []

    def synchronise() -> None:
        were_clean.append(not engine.pool.tensor[: engine.pool.num_pages].any())

    stream.synchronise = synchronise  # type: ignore[method-assign]
    engine.warm_up()
    assert were_clean[-1] and not all(were_clean)
