"""dopd._router: what Python sees of the router. Skipped where the extension is not built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dopd

_router = pytest.importorskip("dopd._router", reason="the extension is not built")


def test_version_is_that_of_the_package() -> None:
    assert _router.version == dopd.__version__


def test_version_command_ends_well(capfd: pytest.CaptureFixture[str]) -> None:
    assert _router.main(["version"]) == 0
    assert capfd.readouterr().out == f"dopd {dopd.__version__}\n"


def test_known_model_that_is_absent_is_a_usage_error(capfd: pytest.CaptureFixture[str]) -> None:
    code = _router.main(["serve", "smollm2", "--port", "0"], known_models={"smollm2": None})
    assert code == 2
    assert "pip install 'dopd[demo]'" in capfd.readouterr().err


def test_step_time_grows_with_work() -> None:
    decode = _router.step_time("h100-8b", [], 1, 100)
    both = _router.step_time("h100-8b", [(512, 0)], 1, 100)
    assert 0 < decode < both
    assert _router.step_time("instant", [(512, 0)], 1, 100) == 0


def test_step_time_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    file = tmp_path / "timings.json"
    file.write_text(_router.timings_json("h100-70b"))
    shape = ([(100, 7), (3, 0)], 5, 999)
    assert _router.step_time(str(file), *shape) == _router.step_time("h100-70b", *shape)


@pytest.mark.parametrize("text", ["", "{}", '{"name": "x"}'])
def test_broken_calibration_names_the_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "timings.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"timings\.json"):
        _router.step_time(str(file), [], 1, 1)


def test_unknown_timings_name_what_there_is() -> None:
    with pytest.raises(ValueError, match="instant, h100-8b, h100-70b"):
        _router.timings_json("h900")


def test_timings_are_json_with_their_name() -> None:
    assert json.loads(_router.timings_json("h100-8b"))["name"] == "h100-8b"
