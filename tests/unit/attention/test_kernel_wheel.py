"""The wheel is one that pip installs and FlashInfer asks, of either version."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import sys
import zipfile
from email.parser import Parser
from pathlib import Path
from types import ModuleType

import pytest

from dopd.attention import kernel_wheel


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return write(tmp_path)


def write(folder: Path) -> Path:
    libraries = {}
    for name in ("page", "norm"):
        libraries[name] = folder / f"{name}.so"
        libraries[name].write_text(name)
    return kernel_wheel.write(
        folder,
        libraries,
        flashinfer="0.6.18.post1",
        cuda="13.0",
        architectures=["sm80", "sm90a"],
    )


def installed(wheel: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What an import of it gives."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    spec = importlib.util.spec_from_file_location(
        "jit_cache_under_test", folder / "flashinfer_jit_cache/__init__.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_its_name_tells_what_it_is_for(wheel: Path) -> None:
    assert wheel.name.startswith("flashinfer_jit_cache-0.6.18.post1+cu130.sm80.sm90a-py3-none-")
    assert wheel.name.endswith(".whl")


def test_flashinfer_finds_what_it_asks_for(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = installed(wheel, tmp_path / "site", monkeypatch)
    # 0.6: this prefix is compared, and DIR/NAME/NAME.so is loaded.
    assert module.__version__.startswith("0.6.18.post1+")
    assert Path(module.get_jit_cache_dir(), "norm/norm.so").read_text() == "norm"
    # 0.7: what it reads of each provider.
    (provider,) = module.get_jit_cache_providers()
    assert provider.version == module.__version__
    assert provider.jit_cache_dir == module.get_jit_cache_dir()
    assert provider.cuda_architectures == {"sm80", "sm90a"}
    assert provider.modules == {"page", "norm"}
    assert (provider.provider_id, provider.distribution) == ("dopd", "flashinfer-jit-cache")


def test_pip_can_check_every_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    info = "flashinfer_jit_cache-0.6.18.post1+cu130.sm80.sm90a.dist-info"
    record = contents.pop(f"{info}/RECORD").decode().splitlines()
    assert record.pop() == f"{info}/RECORD,,"
    told = {name: (digest, int(size)) for name, digest, size in (a.split(",") for a in record)}
    assert set(told) == set(contents)
    for name, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        assert told[name] == (f"sha256={digest}", len(data))
    headers = Parser().parsestr(contents[f"{info}/METADATA"].decode())
    assert headers["Name"] == "flashinfer-jit-cache"
    # An upgrade of the one must not leave the other behind.
    assert headers["Requires-Dist"] == "flashinfer-python==0.6.18.post1"
    tags = Parser().parsestr(contents[f"{info}/WHEEL"].decode())
    assert f"-{tags['Tag']}.whl" in wheel.name and tags["Root-Is-Purelib"] == "false"


def test_the_same_kernels_make_the_same_file(wheel: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert write(other).read_bytes() == wheel.read_bytes()
    assert not list(tmp_path.glob("*.unfinished"))
