"""The check of a GPU's kernels before they are trusted: it takes right ones in every dtype."""

from __future__ import annotations

import pytest
import torch

from dopd.attention import choose
from dopd.errors import ConfigError
from dopd.models.kernels import make_kernels
from dopd.weights import made_up
from dopd.weights.config import ModelConfig
from tests.support.gpu import stub_flashinfer

CPU = torch.device("cpu")


def config_of(name: str) -> ModelConfig:
    made = made_up.parse(f"random:{name}")
    assert made is not None
    return made.config


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["tiny", "smollm2-135m"])
def test_right_kernels_pass_in_the_dtypes_of_gpus(name: str, dtype: torch.dtype) -> None:
    """Of equals at the border FlashInfer keeps all, torch the lowest ids: there must be none."""
    config = config_of(name)
    with stub_flashinfer.installed():
        kernels = make_kernels(choose.FLASHINFER, config, 64, dtype, CPU)
    assert type(kernels).__name__ == "FlashInferKernels"


@pytest.mark.parametrize("off", [1 + 1 / 8, 0.0, float("nan")])
def test_norm_that_is_off_is_refused(off: float, monkeypatch: pytest.MonkeyPatch) -> None:
    right = stub_flashinfer.rmsnorm
    monkeypatch.setattr(stub_flashinfer, "rmsnorm", lambda x, w, eps: right(x, w, eps) * off)
    config = config_of("tiny")
    with stub_flashinfer.installed(), pytest.raises(ConfigError, match="rms norm computes"):
        make_kernels(choose.FLASHINFER, config, 64, torch.bfloat16, CPU)
