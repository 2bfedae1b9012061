"""dopd simulate: a table, JSON, pictures; and what is wrong with a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("dopd._router", reason="the extension is not built")

from dopd.cli import app, console
from dopd.sim import study

LOAD = "poisson:rate=20,prompt=800~0.8,output=60,seconds=10"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    try:
        code = app.run(["simulate", *words])
    except SystemExit as end:
        code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_all_policies_in_a_table_a_file_and_a_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, plot = tmp_path / "o.json", tmp_path / "o.svg"
    code, text, _ = run(capsys, LOAD, "--json", str(out), "--plot", str(plot))
    assert code == console.OK
    assert "simulated" in text.splitlines()[0]
    document = json.loads(out.read_text())
    assert [row["name"] for row in document["policies"]] == list(study.ALL)
    assert document["simulated"] is True
    for row in document["policies"]:
        assert row["figures"]["counts"]["requests"] == document["trace"]["requests"]
        assert study.label(row) in text
    assert "simulated" in plot.read_text()


def test_the_highest_rate_of_one_policy(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--policy", "static-1:1", "--fleet", "h100:2", "--find-rate", "90", "--json", "-"]
    code, text, _ = run(capsys, LOAD, *words)
    assert code == console.OK
    (row,) = json.loads(text)["policies"]
    held = [attained >= 0.9 for factor, attained in row["tries"] if factor <= row["factor"]]
    assert row["factor"] > 0
    assert all(held)
    assert row["figures"]["attainment"]["overall"] >= 0.9


def test_rules_rates_and_cuts_reach_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--policy", "dopd", "--json", "-", "--rate", "2", "--seconds", "5"]
    words += ["--rule", "order=fcfs", "--rule", "step.mode=fill", "--penalty", "0.4"]
    code, text, _ = run(capsys, LOAD, *words)
    document = json.loads(text)
    assert code == console.OK
    assert document["options"]["rules"] == {"order": "fcfs", "step": {"mode": "fill"}}
    assert document["trace"]["requests"] == pytest.approx(200, rel=0.25)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["none.csv"], "trace none.csv cannot be read"),
        (["poisson:rate=1,prompt=0,output=1"], "expected prompt as a number from 1"),
        ([LOAD, "--policy", "best"], 'no policy "best"'),
        ([LOAD, "--policy", "static-9:9"], 'no policy "static-9:9"'),
        ([LOAD, "--fleet", "h100"], "must be KIND:COUNT, such as h100:8"),
        ([LOAD, "--fleet", "abacus:2"], 'no device "abacus"; there are h100'),
        ([LOAD, "--model", "x"], 'no model "x"; there are llama-3.1-8b'),
        ([LOAD, "--rate", "0"], "must be a number from 0.001"),
        ([LOAD, "--rate", "2", "--find-rate", "90"], "not allowed with argument --rate"),
        ([LOAD, "--find-rate", "95"], "invalid choice: 95"),
        ([LOAD, "--penalty", "-1"], "must be a number from 0 to 10"),
        ([LOAD, "--plot", "a.pdf"], "must end in .svg or .png"),
        ([LOAD, "--json", "no/such/o.json"], "no folder no/such"),
        ([LOAD, "--seconds", "0.001"], "no request within 0.001 s"),
        ([LOAD, "--rule", "gate"], "must be NAME=VALUE"),
        ([LOAD, "--rule", "gat=1"], "unknown field `gat`"),
        ([LOAD, "--polcy", "dopd"], "--policy"),
    ],
)
def test_a_bad_line_is_a_usage_error_that_says_what(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *words)
    assert code == console.USAGE
    assert out == ""
    assert err.startswith("error: ")
    assert told in err


def test_families_are_climbed_from_the_middle() -> None:
    worth = {f"static-{p}:{8 - p}": -((p - 6) ** 2) + 99.0 for p in range(1, 8)}
    asked: list[str] = []

    def of(policy: str, best: float) -> float:
        del best
        asked.append(policy)
        return worth[policy]

    assert study.climb(study.members("static", 8), of)[0] == "static-6:2"
    assert len(asked) == len(set(asked)) == 4
    assert study.members("static", 1) == ["static-0:1"]
    assert len(study.members("static", 64)) == 7
    assert study.members("agg-512", 8) == ["agg-512"]
