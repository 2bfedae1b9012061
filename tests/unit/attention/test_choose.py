"""Which back end is chosen, and what is said where it cannot be had."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from dopd.attention import choose
from dopd.attention.torch import TorchAttention
from dopd.errors import ConfigError
from tests.support.gpu import stub_flashinfer

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def double() -> Iterator[ModuleType]:
    with stub_flashinfer.installed():
        yield stub_flashinfer


@pytest.fixture
def no_flashinfer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it was not installed, even where it is."""
    monkeypatch.setitem(sys.modules, "flashinfer", None)
    monkeypatch.delitem(sys.modules, "dopd.attention.flashinfer", raising=False)


def test_auto_is_flashinfer_on_a_gpu_and_torch_on_a_cpu(double: ModuleType) -> None:
    assert choose.choose("auto", CPU) == "torch"
    assert choose.choose("auto", GPU) == "flashinfer"
    assert choose.choose("flashinfer", GPU) == "flashinfer"
    assert choose.choose("torch", GPU) == "torch"


@pytest.mark.usefixtures("no_flashinfer")
def test_a_cpu_worker_needs_no_flashinfer() -> None:
    assert choose.choose("auto", CPU) == "torch"
    pool = torch.zeros(2, 1, 2, 4, 1, 8)
    assert isinstance(
        choose.make("torch", pool, 1, max_rows=1, max_row_pages=1, fixed_split=True), TorchAttention
    )


@pytest.mark.usefixtures("no_flashinfer")
@pytest.mark.parametrize("asked", ["auto", "flashinfer"])
def test_missing_wheel_is_named_and_torch_offered(asked: str) -> None:
    with pytest.raises(ConfigError) as raised:
        choose.choose(asked, GPU)
    for part in (
        "pip install 'dopd[gpu]'",
        "flashinfer-python",
        "apache-tvm-ffi",
        "ModuleNotFound",
    ):
        assert part in str(raised.value)
    assert "--attention torch" in str(raised.value)


@pytest.mark.parametrize("error", [OSError("libcudart.so.13: not found"), AttributeError("no ops")])
def test_wheel_that_fails_at_import_tells_its_own_words(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "flashinfer":
                raise error

    monkeypatch.delitem(sys.modules, "flashinfer", raising=False)
    monkeypatch.delitem(sys.modules, "dopd.attention.flashinfer", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ConfigError, match=str(error)) as raised:
        choose.choose("auto", GPU)
    assert type(error).__name__ in str(raised.value)


@pytest.mark.parametrize("version", ["0.6.17", "0.2.5.post1", "0.8.0", "1.0", "unknown"])
def test_version_that_nobody_looked_at_is_refused(
    version: str, double: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(double, "__version__", version)
    with pytest.raises(ConfigError, match=rf"flashinfer-python {version} is installed, 0\.6\.18"):
        choose.choose("auto", GPU)


@pytest.mark.parametrize("version", ["0.6.18", "0.6.18.post1", "0.7.2.post1", "0.7.10+cu13"])
def test_versions_that_were_looked_at_are_taken(
    version: str, double: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(double, "__version__", version)
    assert choose.choose("auto", GPU) == "flashinfer"


def test_flashinfer_on_a_cpu_is_refused(double: ModuleType) -> None:
    with pytest.raises(ConfigError, match="computes on CUDA devices, not on cpu"):
        choose.choose("flashinfer", CPU)


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="'fa4' is unknown; give auto, flashinfer, torch"):
        choose.choose("fa4", GPU)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "message"),
    [
        (torch.float32, 64, "cannot compute in float32; give --dtype bfloat16 or float16"),
        (torch.bfloat16, 80, "no kernels for heads of 80, only of 64, 128, 256"),
    ],
)
def test_model_without_kernels_is_refused_with_what_to_do(
    dtype: torch.dtype, head_dim: int, message: str, double: ModuleType
) -> None:
    pool = torch.zeros(2, 1, 2, 16, 1, head_dim, dtype=dtype)
    with pytest.raises(ConfigError, match=message) as raised:
        choose.make("flashinfer", pool, 1, max_rows=1, max_row_pages=1)
    assert "--attention torch" in str(raised.value)


def small_pool(dtype: torch.dtype = torch.bfloat16, page_size: int = 16) -> torch.Tensor:
    return torch.zeros(3, 2, 2, page_size, 2, 64, dtype=dtype)


@pytest.mark.parametrize("page_size", [1, 3, 16])
def test_back_end_is_probed_on_a_page_that_is_clean_afterwards(
    page_size: int, double: ModuleType
) -> None:
    pool = small_pool(page_size=page_size)
    choose.make("flashinfer", pool, 6, max_rows=1, max_row_pages=1)
    assert double.State.plans == ["prefill", "decode"]
    assert not pool.any()


def test_kernels_that_cannot_be_compiled_are_an_error_at_the_start(
    double: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **named: object) -> None:
        raise RuntimeError("ninja: not found")

    monkeypatch.setattr(double.BatchPrefillWithPagedKVCacheWrapper, "plan", fails)
    with pytest.raises(ConfigError, match=r"does not run on cpu .*ninja: not found.* nvcc"):
        choose.make("flashinfer", small_pool(), 6, max_rows=1, max_row_pages=1)


@pytest.mark.parametrize("wrong", [0.2, float("nan")])
def test_kernels_that_compute_nonsense_are_an_error_at_the_start(
    wrong: float, double: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = double._attend

    def wrongly(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        out, weights = right(*args)
        return out + wrong, weights

    monkeypatch.setattr(double, "_attend", wrongly)
    pool = small_pool()
    with pytest.raises(ConfigError, match="computes wrong numbers on cpu"):
        choose.make("flashinfer", pool, 6, max_rows=1, max_row_pages=1)
    assert not pool.any()


def test_kernels_that_prefill_are_fa2_unless_asked(
    double: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    right = double.BatchPrefillWithPagedKVCacheWrapper.__init__

    def noted(self: object, *args: object, backend: str) -> None:
        used.append(backend)
        right(self, *args, backend=backend)

    monkeypatch.setattr(double.BatchPrefillWithPagedKVCacheWrapper, "__init__", noted)
    choose.make("flashinfer", small_pool(), 6, max_rows=1, max_row_pages=1)
    monkeypatch.setenv("DOPD_FLASHINFER_PREFILL", "fa3")
    choose.make("flashinfer", small_pool(), 6, max_rows=1, max_row_pages=1)
    assert used == ["fa2", "fa3"]
    monkeypatch.setenv("DOPD_FLASHINFER_PREFILL", "fa4")
    with pytest.raises(ConfigError, match="DOPD_FLASHINFER_PREFILL is 'fa4', none of fa2, fa3"):
        choose.make("flashinfer", small_pool(), 6, max_rows=1, max_row_pages=1)
