"""dopd simulate: a table, JSON, pictures; and what is wrong with a line."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dopd._router", reason="the extension is not built")

from dopd import _router, sim
from dopd.cli import app, console, simulate
from dopd.sim import plot, study
from dopd.sim.pool import Stopped

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


def test_models_are_those_of_the_calibrations() -> None:
    assert {model for _, model, _ in _router.sim_kinds()} == set(simulate.MODELS)


def test_what_no_server_takes_is_counted_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    long = "poisson:rate=5,prompt=131000,output={},seconds=1"
    for output, is_longer in ((72, False), (73, True)):
        _, _, notes = run(capsys, long.format(output), "--policy", "static", "--json", "-")
        assert ("requests are longer than the context of 131072 tokens" in notes) == is_longer


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
        ([LOAD, "--model", "x"], "choose from"),
        ([LOAD, "--rate", "0"], "must be a number from 0.001"),
        ([LOAD, "--rate", "2", "--find-rate", "90"], "not allowed with argument --rate"),
        ([LOAD, "--find-rate", "95"], "invalid choice: 95"),
        ([LOAD, "--penalty", "-1"], "must be a number from 0 to 10"),
        ([LOAD, "--plot", "a.pdf"], "must end in .svg or .png"),
        ([LOAD, "--json", "no/such/o.json"], "no folder no/such"),
        ([LOAD, "--seconds", "0.001"], "no request within 0.001 s"),
        ([LOAD, "--json", "."], "is a folder"),
        (["poison:rate=8"], "a made trace begins with poisson, gamma, shift, minutes"),
        ([LOAD, "--rule", "step=1", "--rule", "step.mode=fill"], "step has a value already"),
        ([LOAD, "--rule", "fair_ratio=-1"], "fair_ratio is -1"),
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


def test_the_targets_are_told_in_numbers_and_a_load_that_tells_nothing_apart(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--policy", "dopd,static-4:4", "--slo-tpot-ms", "45"]
    code, text, err = run(capsys, LOAD, *words)
    assert code == console.OK
    head = text.splitlines()[0]
    assert "first token in 500 ms (or 3 x its prefill), later ones in 45 ms; simulated" in head
    assert "--find-rate 90" in err
    _, text, err = run(capsys, LOAD, *words, "--json", "-", "--slo-ttft-ms", "1", "--rate", "30")
    assert json.loads(text)["targets"] == {"ttft_ms": 1, "ttft_prefill_ratio": 3, "tpot_ms": 45}
    assert err == ""


def test_every_policy_of_the_table_is_in_the_picture() -> None:
    series = [{"start_s": 0, "attainment": 1, "ttft_p90_ms": 9}]
    figures = {
        "attainment": {"overall": 1, "longest_tenth": 1},
        "utilisation": dict.fromkeys(("prefill", "decode", "mixed", "idle"), 0.25),
        "series": series,
    }
    rows = [{"name": name, "policy": name, "figures": figures} for name in study.ALL]
    options = {"device": "h100", "model": "llama-70b", "workers": 8}
    options |= {"slo_ttft_ms": None, "slo_tpot_ms": None}
    trace = sim.load(LOAD)
    picture = study.picture(study.document(trace, rows, options))
    for panel in picture.panels[-2:]:
        assert isinstance(panel, plot.Lines)
        assert list(panel.series) == list(study.ALL)
    assert "first token in 1000 ms" in picture.note


def test_ctrl_c_ends_runs_at_once_and_says_what_was_done(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []

    def judge(trace: sim.Trace, name: str, options: dict[str, Any], workers: int) -> None:
        main = threading.main_thread().ident or 0
        once = iter((signal.SIGINT,))
        try:
            # Long, unless it is stopped: the main thread gets Ctrl-C while this one simulates.
            sim.simulate(
                trace.scaled(1000),
                policy=name,
                progress=lambda *_: [signal.pthread_kill(main, one) for one in once],
            )
        except Stopped:
            ends.append(name)
            raise

    monkeypatch.setattr(study, "judge", judge)
    words = ["--policy", "dopd,static-4:4", "--jobs", "1", "--json", str(tmp_path / "o.json")]
    code, out, err = run(capsys, "poisson:rate=20,prompt=800~0.8,output=400,seconds=40", *words)
    assert (code, ends) == (console.INTERRUPTED, ["dopd"])
    assert err == "interrupted: 0 of 2 policies were done; nothing written\n"
    assert (out, list(tmp_path.iterdir())) == ("", [])


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
