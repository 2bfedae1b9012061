"""How many GPUs workers will see, from the driver's library and CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import ctypes
from typing import Any, cast

import pytest

from dopd.cli import gpus


class Library:
    """libnvidia-ml with so many devices."""

    def __init__(self, devices: int, init: int = 0, count: int = 0) -> None:
        self.devices, self.init, self.count = devices, init, count
        self.is_open = False

    def nvmlInit_v2(self) -> int:
        self.is_open = self.init == 0
        return self.init

    def nvmlDeviceGetCount_v2(self, number: Any) -> int:
        number._obj.value = self.devices
        return self.count

    def nvmlShutdown(self) -> int:
        self.is_open = False
        return 0


@pytest.mark.parametrize(
    ("library", "found"),
    [(Library(4), 4), (Library(0), 0), (Library(4, init=9), 0), (Library(4, count=1), 0)],
)
def test_the_driver_is_asked_and_left(library: Library, found: int) -> None:
    assert gpus.installed(lambda name: cast(ctypes.CDLL, library)) == found
    assert not library.is_open


def test_without_a_driver_there_are_none() -> None:
    def absent(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    assert gpus.installed(absent) == 0


@pytest.mark.parametrize(
    ("chosen", "count"),
    [
        (None, 4),
        ("", 0),
        ("-1", 0),
        ("2", 1),
        ("3, 1", 2),
        ("0,9,1", 1),
        ("0,0", 1),
        ("GPU-8932f937,MIG-3b", 2),
        ("NoDevFiles", 0),
    ],
)
def test_cuda_shows_devices_up_to_the_first_that_is_none(chosen: str | None, count: int) -> None:
    assert gpus.visible(chosen, 4) == count


def test_nothing_is_visible_where_nothing_is() -> None:
    assert gpus.visible("GPU-8932f937", 0) == gpus.visible(None, 0) == 0


def test_a_torch_without_cuda_uses_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "installed", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "torch_cuda", lambda: None)
    assert gpus.count() == 0
    monkeypatch.setattr(gpus, "torch_cuda", lambda: "12.8")
    assert gpus.count() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpus.count() == 1
