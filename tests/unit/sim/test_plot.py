"""Pictures: well-formed, with axes, units, names; the same in both formats."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dopd.errors import DopdError
from dopd.sim.plot import Bars, Figure, Lines, save
from dopd.sim.plot.figure import ticks

FIGURE = Figure(
    "a <trace>, simulated",
    [
        Bars("Rates", "times the rate", ["dopd", "static-4:4"], {"rate": [28.0, 27.4]}),
        Bars("Time", "%", ["dopd"], {"prefill": [30], "idle": [70]}, is_stacked=True, limit=100),
        Lines("Over time", "time (s)", "good (%)", {"dopd": ([0, 10], [90, 100])}, mark=90),
    ],
    "8 x h100",
)
SVG = "{http://www.w3.org/2000/svg}"


def test_an_svg_has_every_word_and_stays_within_its_frame(tmp_path: Path) -> None:
    save(FIGURE, tmp_path / "a.svg")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    words = " ".join(text.text or "" for text in root.iter(f"{SVG}text"))
    for word in (
        "a <trace>, simulated",
        "times the rate",
        "static-4:4",
        "idle",
        "good (%)",
        "27.4",
    ):
        assert word in words
    width, height = float(root.get("width", "0")), float(root.get("height", "0"))
    for bar in root.iter(f"{SVG}rect"):
        assert float(bar.get("x", "0")) + float(bar.get("width", "0")) <= width
        assert float(bar.get("height", "0")) <= height


def test_an_svg_needs_no_library_and_is_the_same_every_time(tmp_path: Path) -> None:
    save(FIGURE, tmp_path / "a.svg")
    save(FIGURE, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    code = (
        "import sys, dopd.sim.plot.svg; print('numpy' in sys.modules, 'matplotlib' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


def test_a_png_is_one(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="PNG is drawn by Matplotlib")
    save(FIGURE, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_other_suffixes_and_lost_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(DopdError, match=r"must end in .svg or .png"):
        save(FIGURE, tmp_path / "a.pdf")
    with pytest.raises(DopdError, match="cannot be written: no such file"):
        save(FIGURE, tmp_path / "none" / "a.svg")


@pytest.mark.parametrize("top", [1e-6, 0.3, 1, 7, 28.9, 100, 12_345, 9e9])
def test_ticks_are_few_round_and_reach_the_top(top: float) -> None:
    found = ticks(top)
    assert found[0] == 0
    assert found[-2] < top <= found[-1] * 1.001
    assert 4 <= len(found) <= 8
    assert ticks(0) == ticks(float("nan")) == [0.0, 1.0]
