"""Whole outputs kept in files. `UPDATE_SNAPSHOTS=1 make python-test` writes them again."""

from __future__ import annotations

import inspect
import os
from pathlib import Path


def assert_snapshot(name: str, text: str) -> None:
    """`text` equals the file `snapshots/NAME.txt` beside the calling test."""
    caller = Path(inspect.stack()[1].filename)
    path = caller.parent / "snapshots" / f"{name}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.is_file(), f"no snapshot {path.name}; UPDATE_SNAPSHOTS=1 writes it"
    assert text == path.read_text()
