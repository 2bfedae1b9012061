"""The CUDA compiler is found where it lies, and what is missing is named."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dopd.attention import toolkit
from dopd.errors import ConfigError

RELEASE = dict.fromkeys(toolkit.ONE_RELEASE, "13.2.86")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of ninja and c++ alone, and wheels that are whole."""
    programs = tmp_path / "bin"
    for name in ("ninja", "c++"):
        program(programs / name)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(toolkit.sys, "executable", str(tmp_path / "venv/bin/python"))
    for name in ("CUDA_HOME", "CUDA_PATH", "CXX"):
        monkeypatch.delenv(name, raising=False)
    for part in toolkit.PARTS:
        program(tmp_path / "nvidia/cu13" / part)
    # Another place of the same packages, as a user's beside the system's, without a compiler.
    (tmp_path / "other/nvidia/cu13").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path / "other"))
    for name in [name for name in toolkit.sys.modules if name.partition(".")[0] == "nvidia"]:
        monkeypatch.delitem(toolkit.sys.modules, name)
    return tmp_path


def program(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o755)


def test_wheels_are_found(machine: Path) -> None:
    found = toolkit.find(RELEASE.get)
    assert found == toolkit.Toolkit(machine / "nvidia/cu13", machine / "bin/ninja", True)


def test_an_installed_toolkit_goes_first(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(machine / "cuda/bin/nvcc")
    monkeypatch.setenv("PATH", f"{machine}/bin:{machine}/cuda/bin")
    assert toolkit.find(RELEASE.get).home == machine / "cuda"
    program(machine / "named/bin/nvcc")
    monkeypatch.setenv("CUDA_HOME", str(machine / "named"))
    found = toolkit.find(RELEASE.get)
    assert (found.home, found.is_of_wheels) == (machine / "named", False)


@pytest.mark.parametrize(
    ("name", "told"), [("ninja", "pip install ninja"), ("c++", "install g\\+\\+, or set CXX")]
)
def test_what_runs_the_compiler_is_named(name: str, told: str, machine: Path) -> None:
    (machine / "bin" / name).unlink()
    with pytest.raises(ConfigError, match=told):
        toolkit.find(RELEASE.get)


def test_without_a_compiler_every_wheel_is_named_in_torchs_release(machine: Path) -> None:
    (machine / "nvidia/cu13/bin/nvcc").unlink()
    with pytest.raises(ConfigError, match="no nvcc: CUDA_HOME is not set") as raised:
        toolkit.find({"nvidia-cuda-runtime": "13.1.80"}.get)
    assert str(raised.value).endswith(
        "pip install 'nvidia-cuda-nvcc==13.1.*' 'nvidia-cuda-crt==13.1.*' 'nvidia-nvvm==13.1.*' "
        "'nvidia-cuda-runtime==13.1.*' nvidia-curand nvidia-cublas"
    )


@pytest.mark.parametrize("part", toolkit.PARTS)
def test_a_missing_wheel_is_named(part: str, machine: Path) -> None:
    (machine / "nvidia/cu13" / part).unlink()
    with pytest.raises(ConfigError, match=f"pip install .*{toolkit.PARTS[part]}"):
        toolkit.find(RELEASE.get)


def test_a_folder_without_nvcc_is_refused(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(machine))
    with pytest.raises(ConfigError, match=f"CUDA_HOME is {machine}, which has no bin/nvcc"):
        toolkit.find(RELEASE.get)


def test_parts_of_two_releases_are_refused() -> None:
    mixed = RELEASE | {"nvidia-nvvm": "13.5.37"}
    with pytest.raises(ConfigError, match=r"several releases .*nvidia-nvvm 13\.5\.37") as raised:
        toolkit.find(mixed.get)
    assert "'nvidia-nvvm==13.2.*'" in str(raised.value)


def test_names_to_link_against_lie_in_one_folder(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    found = toolkit.Toolkit(machine / "nvidia/cu13", machine / "bin/ninja", True)
    with pytest.raises(ConfigError, match="no libcudart: reinstall nvidia-cuda-runtime"):
        toolkit.make_stubs(found, machine / "stubs")
    program(found.home / "lib/libcudart.so.13")
    for _ in range(2):
        folder = toolkit.make_stubs(found, machine / "stubs")
    assert (folder / "libcudart.so").resolve() == found.home / "lib/libcudart.so.13"
    told = subprocess.run(
        ["readelf", "-d", folder / "libcuda.so"], capture_output=True, text=True, check=True
    ).stdout
    assert "soname: [libcuda.so.1]" in told


def test_a_linker_that_fails_is_heard(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "bin/c++").write_text("#!/bin/sh\necho cannot find ld >&2; exit 1\n")
    found = toolkit.Toolkit(machine / "cuda", machine / "bin/ninja", False)
    with pytest.raises(ConfigError, match="cannot link a library: cannot find ld"):
        toolkit.make_stubs(found, machine / "stubs")
