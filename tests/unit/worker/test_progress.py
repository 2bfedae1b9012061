"""What a start-up shows: a bar on a terminal, else one line a stage."""

from __future__ import annotations

import io
import itertools
import logging

import pytest

from dopd.worker.progress import Progress, describe, in_units


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True


def load(progress: Progress) -> None:
    for stage, share, num_bytes in [
        ("read", 0.0, 0),
        ("read", 1.0, 0),
        ("map", 1.0, 98_000_000),
        ("copy", 0.0, 0),
        ("copy", 0.5, 250_000_000),
        ("copy", 1.0, 538_000_000),
        ("warm-up", 0.5, 0),
        ("warm-up", 1.0, 0),
    ]:
        progress(stage, share, num_bytes)


def ticking() -> Progress:
    return Progress(io.StringIO(), clock=itertools.count(0.0, 0.5).__next__)


def test_elsewhere_a_stage_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dopd.worker"):
        load(ticking())
    assert caplog.messages == [
        "start-up: read, 0.5 s",
        "start-up: map, 98 MB in 0.0 s",
        "start-up: copy, 538 MB in 1.0 s, 538 MB/s",
        "start-up: warm-up, 0.5 s",
    ]


def test_on_a_terminal_a_stage_is_one_bar(caplog: pytest.LogCaptureFixture) -> None:
    out = Terminal()
    with caplog.at_level(logging.INFO, "dopd.worker"):
        load(Progress(out, clock=itertools.count(0.0, 0.5).__next__))
    assert not caplog.messages
    lines = [line.split("\r")[-1] for line in out.getvalue().split("\n")[:-1]]
    assert [line.split("[")[0].strip() for line in lines] == ["read", "map", "copy", "warm-up"]
    assert "] 100%  538 MB in 1.0 s, 538 MB/s" in lines[2]
    half = next(part for part in out.getvalue().split("\r") if " 50%" in part)
    assert half.count("#") == half.count("-") == 15


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (9_960, "10 kB"),
        (999_600, "1.0 MB"),
        (140e9, "140 GB"),
        (2e15, "2000 TB"),
    ],
)
def test_bytes_have_three_digits_and_a_unit(num_bytes: float, text: str) -> None:
    assert in_units(num_bytes) == text


def test_what_took_no_time_has_no_rate() -> None:
    assert describe(10_000_000, 0.01) == "10 MB in 0.0 s"
    assert describe(10_000_000, 0.1) == "10 MB in 0.1 s, 100 MB/s"


def test_a_supervisor_that_asks_gets_a_line_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOPD_PROGRESS", "1")
    out = io.StringIO()
    progress = Progress(out)
    for done in range(101):
        progress("copy", done / 100)
    progress("warm-up", 1.0)
    lines = out.getvalue().splitlines()
    assert lines[:3] == ["start-up: copy 0%", "start-up: copy 5%", "start-up: copy 10%"]
    assert lines[-2:] == ["start-up: copy 100%", "start-up: warm-up 100%"]
    assert len(lines) == 22
