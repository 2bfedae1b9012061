"""What is compiled ahead is what dopd's calls make FlashInfer load. Needs the wheel, no GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support.sources import REPO

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("flashinfer") is None, reason="no flashinfer-python"
)
RUN_S = 55.0


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `asked_kernels` found."""
    home = tmp_path_factory.mktemp("flashinfer")
    environment = os.environ | {
        "FLASHINFER_CUDA_ARCH_LIST": "9.0a",
        "FLASHINFER_WORKSPACE_BASE": str(home),
        "PYTHONPATH": os.pathsep.join([str(REPO / "python"), str(REPO)]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.gpu.asked_kernels"],
        cwd=REPO, env=environment, capture_output=True, text=True, timeout=RUN_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_what_is_compiled_is_what_is_asked_for(cases: list[dict[str, Any]]) -> None:
    assert {case["case"]: case["asked"] for case in cases} == {
        case["case"]: case["compiled"] for case in cases
    }


def test_cases_differ_by_what_kernels_depend_on(cases: list[dict[str, Any]]) -> None:
    """Guards the test above: all that a model and a setting choose was seen."""
    asked = [name for case in cases for name in case["asked"]]
    for part in ("batch_decode", "_q_bf16_", "_q_f16_", "_qk_64_", "_qk_128_", "_sm90", "page"):
        assert any(part in name for name in asked), part
    assert len({tuple(case["asked"]) for case in cases}) >= 8
