"""Grids: what is done is not done again, whatever ended the run before."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from dopd.errors import DopdError
from dopd.sim.grid import done, run_grid
from dopd.sim.progress import Progress

CELLS = [{"x": at, "name": "a"} for at in range(6)]


def double(cell: dict[str, Any]) -> int:
    return 2 * int(cell["x"])


def test_results_come_in_the_order_of_the_cells(tmp_path: Path) -> None:
    found = run_grid([*CELLS, CELLS[0]], double, tmp_path / "out" / "grid.jsonl")
    assert [result for _, result in found] == [0, 2, 4, 6, 8, 10, 0]
    assert len((tmp_path / "out" / "grid.jsonl").read_text().splitlines()) == len(CELLS)


def test_an_interrupted_grid_goes_on(tmp_path: Path) -> None:
    path, ran = tmp_path / "grid.jsonl", []

    def break_off(cell: dict[str, Any]) -> int:
        if cell["x"] == 3:
            raise KeyboardInterrupt
        return double(cell)

    with pytest.raises(KeyboardInterrupt):
        run_grid(CELLS, break_off, path, jobs=1)
    before = len(done(path))
    assert 1 <= before < len(CELLS)

    def count(cell: dict[str, Any]) -> int:
        ran.append(cell["x"])
        return double(cell)

    assert [r for _, r in run_grid(CELLS, count, path)] == [0, 2, 4, 6, 8, 10]
    assert len(ran) == len(CELLS) - before


def test_a_line_cut_off_is_run_again_and_a_broken_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "grid.jsonl"
    run_grid(CELLS[:2], double, path)
    path.write_text(path.read_text()[:-9])
    assert len(done(path)) == 1
    run_grid(CELLS[:2], double, path)
    assert len(done(path)) == 2
    path.write_text("{\n" + path.read_text())
    with pytest.raises(DopdError, match=r"grid.jsonl:1: no result of a cell"):
        done(path)


def test_fields_may_stand_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "grid.jsonl"
    path.write_text(json.dumps({"cell": {"name": "a", "x": 1}, "result": 7}) + "\n")
    assert run_grid([{"x": 1, "name": "a"}], double, path) == [({"x": 1, "name": "a"}, 7)]


def test_progress_off_a_terminal_is_a_line_a_cell() -> None:
    stream = io.StringIO()
    with Progress("cells", 2, stream) as progress:
        progress.advance("a 1")
        progress.advance("a 2")
    first, second = stream.getvalue().splitlines()
    assert first.startswith("1/2 cells, 0 s, ")
    assert second.endswith("0 s left: a 2")
