"""The examples run, and their pictures are those that the docs show."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("dopd._router", reason="the extension is not built")

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def test_orders_are_compared_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("order", EXAMPLES / "order.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.main(str(tmp_path / "order.svg"))
    assert len(capsys.readouterr().out.splitlines()) == len(found) == 5
    # The shortest first serves more, by arrival serves more of the long ones.
    assert found["aged (dopd)"][0] > found["by arrival"][0] + 2
    assert found["by arrival"][1] > found["aged (dopd)"][1] + 2
    assert "simulated" in (tmp_path / "order.svg").read_text()
    assert (EXAMPLES / "order.svg").read_text().count("<rect") == (
        (tmp_path / "order.svg").read_text().count("<rect")
    )
