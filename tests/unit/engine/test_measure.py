"""Which steps are timed, in which turns, and which are left out."""

from __future__ import annotations

from collections.abc import Sequence

from dopd.engine.foresight import Foresight
from dopd.engine.measure import Plan, Shape, Steps, measure
from dopd.engine.mock import MockEngine
from dopd.engine.torch_cost import work_of
from dopd.types import Result, Row


class Told(Steps):
    """Steps that take a microsecond for every new token, and are noted."""

    def __init__(self, num_pages: int, max_model_len: int) -> None:
        super().__init__(MockEngine(num_pages, "instant", max_model_len=max_model_len))
        self.noted: list[int] = []

    def us(self, rows: Sequence[Row]) -> float:
        super().us(rows)
        self.noted.append(sum(len(row.tokens) for row in rows))
        return float(self.noted[-1])


def test_rows_have_pages_of_their_own_and_the_work_of_their_shape() -> None:
    steps = Told(1000, 8192)
    for shape in Plan().shapes():
        if steps.misfit(shape) is None:
            rows = steps.rows(shape)
            pages = [page for row in rows for page in row.pages]
            assert len(pages) == len(set(pages)) and max(pages) < 1000
            assert work_of(rows) == shape.work
            assert [len(row.tokens) > 1 for row in rows] == sorted(len(r.tokens) > 1 for r in rows)


def test_a_plan_times_the_parts_of_a_mixed_step_and_nothing_twice() -> None:
    shapes = list(Plan().shapes())
    assert len(shapes) == len(set(shapes))
    for index, shape in enumerate(shapes):
        if shape.work.is_mixed:
            parts = {Shape(shape.chunk), Shape(batch=shape.batch, context=shape.context)}
            assert parts <= set(shapes[:index])


def test_what_does_not_fit_or_takes_too_long_is_left_out_with_its_reason() -> None:
    steps = Told(100, 1000)
    shapes = [Shape(10), Shape(60), Shape(70), Shape(2000), Shape(batch=20, context=200), Shape(20)]
    cells, left_out = measure(steps, shapes, repeat=2, step_us_max=50.0)
    assert [cell.shape.chunk for cell in cells] == [10, 20]
    assert {shape.tokens: reason for shape, reason in left_out.items()} == {
        60: "took over 5e-05 s",
        70: "more work than prefill 60, which took over 5e-05 s",
        2000: "2000 tokens, the longest sequence has 1000",
        20: "260 pages, the pool has 100",
    }
    # 70 tokens were never computed.
    assert max(steps.noted) == 60


def test_cells_take_turns_and_the_order_changes() -> None:
    steps = Told(100, 1000)
    shares: list[float] = []
    shapes = [Shape(1), Shape(2), Shape(3)]
    cells, _ = measure(
        steps, shapes, repeat=3, step_us_max=50.0, on_step=lambda share, _: shares.append(share)
    )
    assert steps.noted == [1, 2, 3, 3, 2, 1, 1, 2, 3, 3, 2, 1]
    assert [cell.us for cell in cells] == [1.0, 2.0, 3.0]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_a_decode_step_is_timed_after_the_one_before_it() -> None:
    starts: list[list[int]] = []

    class Noted(Told):
        def us(self, rows: Sequence[Row]) -> float:
            starts.append([row.start for row in rows])
            return super().us(rows)

    measure(Noted(100, 1000), [Shape(batch=2, context=33)], repeat=1, step_us_max=50.0)
    assert starts == [[32, 32], [33, 33]] * 2


def test_it_is_counted_whether_timed_steps_were_planned_ahead() -> None:
    """Not the steps before them, which nobody times."""

    class Ahead(MockEngine):
        foresight = Foresight()

        def step(self, rows: Sequence[Row]) -> list[Result]:
            # Each first of two is a miss; so is the second, beyond a context of 40.
            self.foresight.count(is_hit=rows[0].start in (20, 30))
            return super().step(rows)

    steps = Steps(Ahead(100, "instant", max_model_len=1000))
    shapes = [Shape(8), *(Shape(batch=2, context=context) for context in (20, 30, 41))]
    measure(steps, shapes, repeat=2, step_us_max=1e9)
    assert (steps.ahead.hits, steps.ahead.misses) == (6, 3)
    assert steps.ahead.hits + steps.ahead.misses < Ahead.foresight.misses
    plain = Steps(MockEngine(100, "instant", max_model_len=1000))
    measure(plain, shapes, repeat=1, step_us_max=1e9)
    assert plain.ahead == Foresight()
