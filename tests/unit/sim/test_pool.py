"""Runs in threads end with their pool: Python gives Ctrl-C to the main thread alone."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import Future, wait
from pathlib import Path

import pytest

pytest.importorskip("dopd._router", reason="the extension is not built")

from dopd import sim
from dopd.sim import grid
from dopd.sim.pool import Pool, Stopped, running

# Minutes of simulation, unless it is stopped.
LONG = "poisson:rate=200,prompt=1000~0.8,output=400,seconds=4000"


class Interrupted(BaseException):
    """As KeyboardInterrupt comes: in the main thread, somewhere."""


def test_what_runs_is_stopped_when_the_block_is_left_by_an_error() -> None:
    trace = sim.load(LONG)
    told, ends = threading.Event(), []

    def work() -> None:
        try:
            sim.simulate(trace, policy="dopd", progress=lambda ended, requests: told.set())
        except BaseException as error:
            ends.append(type(error))
            raise

    with pytest.raises(Interrupted), Pool(1) as pool:
        pool.submit(work)
        waiting = pool.submit(work)
        assert told.wait(60)
        raise Interrupted
    assert ends == [Stopped]
    assert waiting.cancelled()


def test_a_grid_that_is_interrupted_keeps_what_is_done_and_ends_what_runs(tmp_path: Path) -> None:
    traces = {"short": sim.load("poisson:rate=5,prompt=100,output=9,seconds=5")}
    numbers, path = itertools.count(), tmp_path / "grid.jsonl"
    ends = []

    def work(cell: dict[str, str]) -> float:
        if cell["trace"] == "broken":
            raise Interrupted
        try:
            trace = traces.get(cell["trace"]) or sim.load(LONG)
            return next(numbers) + sim.simulate(trace).attainment
        except Stopped:
            ends.append(cell["trace"])
            raise

    cells = [{"trace": name} for name in ("short", "long", "broken")]
    with pytest.raises(Interrupted):
        sim.run_grid(cells, work, path)
    assert [line.count("short") for line in path.read_text().splitlines()] == [1]
    assert ends == ["long"]


def test_what_is_done_is_kept_even_if_an_error_is_seen_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last_first(futures: dict[Future[object], object]) -> list[Future[object]]:
        wait(futures)
        return list(futures)[::-1]

    def work(cell: dict[str, str]) -> int:
        if cell["trace"] == "broken":
            raise Interrupted
        return 1

    monkeypatch.setattr(grid, "as_completed", last_first)
    path = tmp_path / "grid.jsonl"
    with pytest.raises(Interrupted):
        sim.run_grid([{"trace": "short"}, {"trace": "broken"}], work, path)
    assert path.read_text().count("short") == 1


def test_without_a_pool_progress_is_the_callers_own() -> None:
    assert running(None) is None
    assert running(print) is print
