"""What is compiled ahead is what dopd's calls make FlashInfer load, and it is found.

Needs FlashInfer's wheel and no GPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dopd.attention import kernel_wheel
from tests.support.sources import REPO

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("flashinfer") is None, reason="no flashinfer-python"
)
RUN_S = 55.0


def told(home: Path, *words: str) -> Any:
    """The JSON that `python WORDS` prints; it has modules below `home`, and its cache there."""
    path = [str(home), str(REPO / "python"), str(REPO), *filter(None, sys.path)]
    environment = os.environ | {
        "FLASHINFER_CUDA_ARCH_LIST": "9.0a",
        "FLASHINFER_WORKSPACE_BASE": str(home),
        "PYTHONPATH": os.pathsep.join(path),
    }
    done = subprocess.run(
        [sys.executable, *words],
        cwd=REPO, env=environment, capture_output=True, text=True, timeout=RUN_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `asked_kernels` found."""
    home = tmp_path_factory.mktemp("flashinfer")
    found: list[dict[str, Any]] = told(home, "-m", "tests.support.gpu.asked_kernels")
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


FOUND = """
import json, sys
from dopd.attention import flashinfer_kernels as kernels
found = {one.name: (one.is_aot, str(one.aot_path)) for one in kernels.specs([], "fa2")}
print(json.dumps({"version": kernels.version(), "found": found}))
"""


def test_flashinfer_finds_the_wheel_that_is_installed(tmp_path: Path) -> None:
    """Without a look at compilers or the age of files: that is its `is_aot`."""
    before = told(tmp_path, "-c", FOUND)
    assert not any(is_there for is_there, _ in before["found"].values())
    library = tmp_path / "page.so"
    library.touch()
    wheel = kernel_wheel.write(
        tmp_path,
        {"page": library},
        flashinfer=before["version"],
        cuda="13.0",
        architectures=["sm90a"],
    )
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    found = told(tmp_path, "-c", FOUND)["found"]
    assert [name for name, (is_there, _) in found.items() if is_there] == ["page"]
    assert found["page"][1] == f"{tmp_path}/flashinfer_jit_cache/kernels/page/page.so"
