"""dopd bench engine: from an engine's steps to a calibration that everything else reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dopd.cli import app
from dopd.engine.foresight import Foresight
from dopd.engine.mock import MockEngine
from dopd.engine.timings import Timings
from dopd.errors import ConfigError
from dopd.types import Result, Row
from dopd.worker.handoff_probe import Place, pair

pytest.importorskip("dopd._router")

MOCK = ["--mock", "--mock-timings", "h100-8b"]
QUICK = ["bench", "engine", *MOCK, "--quick", "--kv-memory", "64MiB", "--repeat", "2"]


def test_a_mock_engine_gives_back_the_calibration_it_sleeps_by(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "calibration.json", tmp_path / "report.json"
    assert app.run([*QUICK, "--out", str(out), "--json", str(report)]) == 0
    shown = capsys.readouterr().out
    assert "decode 32 x 1024" in shown and "hand-off over shm" in shown
    document = json.loads(report.read_text())
    timings = Timings.read(out)
    assert document["timings"]["weights_us"] == timings.weights_us
    cells = {(cell["chunk"], cell["batch"]): cell for cell in document["cells"]}
    # Sleeps are no shorter than asked for, however loaded the machine is.
    assert cells[1024, 0]["us"] >= 27_400 and cells[512, 32]["penalty"] is not None
    assert timings.name == "mock"
    # Pages of 128 bytes say nothing of a rate.
    assert document["handoff"]["transport"] == "shm"
    assert min(document["handoff"]["seconds_by_pages"].values()) > 0


def test_it_tells_how_many_of_the_timed_steps_were_planned_ahead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a device that computes while the host goes on; a mock does not."""
    report = tmp_path / "report.json"
    quick = [*QUICK, "--repeat", "1", "--transport", "none", "--json", str(report)]
    assert app.run(quick) == 0
    assert json.loads(report.read_text())["planned_ahead"] == {"hits": 0, "misses": 0}
    assert "planned ahead" not in capsys.readouterr().out
    counts, step = Foresight(), MockEngine.step

    def ahead(engine: MockEngine, rows: Sequence[Row]) -> list[Result]:
        counts.count(is_hit=True)
        return step(engine, rows)

    monkeypatch.setattr(MockEngine, "foresight", counts, raising=False)
    monkeypatch.setattr(MockEngine, "step", ahead)
    assert app.run(quick) == 0
    cells = json.loads(report.read_text())["cells"]
    # Those that decode and nothing else, each timed once for the caches and once for its time.
    timed = 2 * sum(not cell["chunk"] for cell in cells)
    assert json.loads(report.read_text())["planned_ahead"] == {"hits": timed, "misses": 0}
    assert f"planned ahead, as when it serves: {timed} of {timed}" in capsys.readouterr().out


def test_the_router_and_the_simulator_read_the_file(tmp_path: Path) -> None:
    from dopd import _router

    out = tmp_path / "calibration.json"
    argv = [*QUICK, "--repeat", "1", "--transport", "none", "--out", str(out), "--json", "-"]
    assert app.run(argv) == 0
    assert Timings.from_json(_router.timings_json(str(out))) == Timings.read(out)
    assert _router.step_time(str(out), [(512, 0)], 0, 0) > 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give either --model PATH or --mock"),
        (["--mock", "--repeat", "0"], "--repeat is 0, must be 1 to 1000"),
        (["--mock", "--step-seconds-max", "0"], "--step-seconds-max is 0"),
        (["--mock", "--step-seconds-max", "nan"], "--step-seconds-max is nan"),
        (["--mock", "--out", "/nowhere/at/all.json"], "its folder is not there"),
        (["--mock", "--mock-timings", "h200"], "h200"),
        (["--model", "/nowhere", "--device", "tpu"], "tpu"),
    ],
)
def test_bad_options(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["bench", "engine", *argv]) == 2
    assert message in capsys.readouterr().err


def test_a_transport_that_is_not_there_is_named() -> None:
    with (
        pytest.raises(ConfigError, match="'pigeon' is neither auto nor a list"),
        pair("pigeon", Place(4096, 4)),
    ):
        pass


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_pages_of_the_probe_arrive(transport: str) -> None:
    with pair(transport, Place(4096, 8)) as source:
        assert source.seconds(3, 4) > 0


VALID = json.loads(Timings("x", weights_us=1.0).to_json())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting"),
        ("[]", "are no calibration"),
        (json.dumps(VALID | {"more": 1}), "are no calibration"),
        (json.dumps({"name": "x"}), "are no calibration"),
        (json.dumps(VALID | {"weights_us": -1}), "weights_us is -1"),
        (json.dumps(VALID | {"weights_us": True}), "weights_us is True"),
        (json.dumps(VALID | {"weights_us": "1"}), "weights_us is '1'"),
        (json.dumps(VALID).replace("1.0", "NaN"), "weights_us is nan"),
        (json.dumps(VALID | {"weights_us": 1e16}), "weights_us is 1e\\+16"),
        (" " * (17 << 10), "longer than 16384 bytes"),
    ],
)
def test_bad_calibrations_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Timings.read(path)
    with pytest.raises(ConfigError, match="No such file"):
        Timings.read(tmp_path / "none.json")
