"""The runner of a GPU machine's parts: each alone, bounded, and never twice."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import __main__ as runner
from bench.gpu.setup import Setup


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the parts that ran; `nccl` fails."""
    ran: list[str] = []

    def run_part(name: str, setup: Setup, out: Any) -> dict[str, Any]:
        ran.append(name)
        if name == "nccl":
            return {"status": "failed", "seconds": 1.0, "reason": "many lines\nno such library"}
        return {"status": "done", "seconds": 1.0, "found": {"by": name}}

    monkeypatch.setattr(runner, "run_part", run_part)
    return ran


def test_a_run_goes_on_where_the_last_one_ended(tmp_path: Path, calls: list[str]) -> None:
    file = tmp_path / "gpu.json"
    assert runner.main(["env", "nccl", "--json", str(file)]) == 1
    assert runner.main(["env", "nccl", "steps", "--json", str(file)]) == 1
    # What failed is tried again, what is done is not.
    assert calls == ["env", "nccl", "nccl", "steps"]
    parts = json.loads(file.read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {
        "env": "done",
        "nccl": "failed",
        "steps": "done",
    }
    assert parts["env"]["conditions"]["cores"] >= 1
    assert runner.main(["env", "--again", "--json", str(file)]) == 0
    assert calls[-1] == "env" and len(calls) == 5


def test_no_part_begins_that_may_not_end_in_time(
    tmp_path: Path, calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["env", "steps", "--seconds", "100", "--json", str(tmp_path / "gpu.json")]
    assert runner.main(argv) == 0
    assert calls == ["env"]
    assert "not begun: may take 540 s" in capsys.readouterr().out


def test_unknown_parts_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        runner.main(["warp"])
    assert "no part warp; there are env" in capsys.readouterr().err


def test_a_part_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = f"import time\nwhile True: open({str(alive)!r}, 'a').write('.'); time.sleep(0.02)"
    parent = (
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], start_new_session=True)
    deadline = time.monotonic() + 30
    while not alive.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert runner._wait(process, 0.01) is None
    size = alive.stat().st_size
    time.sleep(0.2)
    assert alive.stat().st_size == size


def test_a_part_that_crashes_is_told_with_what_it_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = io.BytesIO()
    monkeypatch.setitem(runner.PARTS, "no_such_part", 60)
    result = runner.run_part("no_such_part", Setup("cpu", True), log)
    assert result["status"] == "failed" and result["exit"] == 1
    assert "No module named 'bench.gpu.no_such_part'" in result["reason"]
    assert b"==== no_such_part (exit 1)" in log.getvalue()
