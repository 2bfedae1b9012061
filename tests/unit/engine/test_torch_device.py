"""What "auto" means on a machine."""

import pytest
import torch

from dopd.engine import torch_device
from dopd.errors import ConfigError

CPU = torch.device("cpu")


def test_auto_is_exact_on_a_cpu_and_small_on_a_gpu() -> None:
    assert torch_device.choose_dtype("auto", CPU) == "float32"
    assert torch_device.choose_dtype("auto", torch.device("cuda", 0)) == "bfloat16"


def test_what_is_asked_for_is_taken() -> None:
    assert torch_device.choose_dtype("float16", CPU) == "float16"
    assert torch_device.choose_device("cpu") == CPU


@pytest.mark.parametrize("device", ["tpu", "meta", "", "cpu:x"])
def test_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="give auto, cpu, cuda or cuda:N"):
        torch_device.choose_device(device)
