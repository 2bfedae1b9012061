"""Many runs, two at a time, that can be interrupted: what is done is never done again."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

from dopd.errors import DopdError
from dopd.sim.pool import Pool
from dopd.sim.progress import Progress

JOBS = 2
JOBS_MAX = 64
# Of a results file: a cell has some hundred bytes.
LINES_MAX = 1_000_000

Cell = dict[str, Any]


def name_of(cell: Cell) -> str:
    """The same for equal cells, whatever the order of their fields."""
    return json.dumps(cell, sort_keys=True)


def done(path: Path) -> dict[str, Any]:
    """Results in `path`, by the name of their cell. A last line that was cut off is left out."""
    found: dict[str, Any] = {}
    if not path.exists():
        return found
    lines = path.read_text().split("\n")
    if len(lines) > LINES_MAX:
        raise DopdError(f"{path} has more than {LINES_MAX} lines")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            found[name_of(row["cell"])] = row["result"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                # Written while the process died; the cell runs again.
                continue
            raise DopdError(f"{path}:{number}: no result of a cell: {error}") from error
    return found


def run_grid(
    cells: Iterable[Cell],
    work: Callable[[Cell], Any],
    path: str | Path,
    *,
    jobs: int = JOBS,
    title: str = "cells",
) -> list[tuple[Cell, Any]]:
    """`work(cell)` for each cell that `path` has no result of; returns all, in order.

    Each result is one JSON line, written at once: run it again after an interruption and it goes
    on. `jobs` threads: a simulation leaves the interpreter free. Progress goes to stderr: a bar
    with the time that is left on a terminal, else a line per cell. What `work` raises ends the
    grid, and so does Ctrl-C: simulations that run end within 0.1 s, without a result.
    """
    if not 1 <= jobs <= JOBS_MAX:
        raise ValueError(f"jobs {jobs}: 1 to {JOBS_MAX}")
    path = Path(path)
    wanted = list(cells)
    found = done(path)
    open_cells = _distinct(cell for cell in wanted if name_of(cell) not in found)
    _mend(path)
    writing = threading.Lock()

    def kept(cell: Cell) -> Any:
        """Written by who made it: a result must not wait behind an error that ends the grid."""
        result = work(cell)
        with writing, path.open("a") as to:
            to.write(json.dumps({"cell": cell, "result": result}) + "\n")
        return result

    with Progress(title, len(open_cells)) as progress, Pool(jobs) as pool:
        futures = {pool.submit(kept, cell): cell for cell in open_cells}
        for future in as_completed(futures):
            cell = futures[future]
            found[name_of(cell)] = future.result()
            progress.advance(_short(cell))
    return [(cell, found[name_of(cell)]) for cell in wanted]


def _distinct(cells: Iterable[Cell]) -> Sequence[Cell]:
    return list({name_of(cell): cell for cell in cells}.values())


def _mend(path: Path) -> None:
    """Cut a last line off that has no end, so that the next one does not continue it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not (text := path.read_text()).endswith("\n") and text:
        path.write_text(text[: text.rfind("\n") + 1])


def _short(cell: Cell) -> str:
    return " ".join(str(value) for value in cell.values())
