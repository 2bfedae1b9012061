"""Random tests that gate a change draw the same cases each time."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def drawn() -> list[str]:
    seen: list[str] = []

    @given(st.tuples(st.integers(), st.floats(), st.text(), st.binary()))
    def draw(values: tuple[object, ...]) -> None:
        seen.append(repr(values))

    draw()
    return seen


def test_cases_do_not_depend_on_what_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hypothesis draws from the constants of modules, and which are loaded is up to the order."""
    if not settings().derandomize:
        pytest.skip("this profile draws at random")
    before = drawn()
    constants = [f"{number}, {number}.5, 'text {number}'" for number in range(50_000, 50_300)]
    (tmp_path / "stranger.py").write_text(f"FOUND = [{', '.join(constants)}]\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("stranger")
    assert drawn() == before
