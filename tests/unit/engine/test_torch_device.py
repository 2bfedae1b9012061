"""What "auto" means on a machine."""

from pathlib import Path

import pytest
import torch

from dopd.engine import torch_device
from dopd.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fpu avx512f avx512_bf16 sse", "bfloat16"),
        ("fpu amx_bf16", "bfloat16"),
        ("fpu avx512f avx512_vnni avx2", "float32"),
        ("fpu avx512_bf16_not", "float32"),
    ],
)
def test_auto_is_bfloat16_only_where_the_cpu_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, dtype: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(torch_device, "CPUINFO", cpuinfo)
    assert torch_device.choose_dtype("auto", CPU) == dtype
    monkeypatch.setattr(torch_device, "CPUINFO", tmp_path / "none")
    assert torch_device.choose_dtype("auto", CPU) == "float32"


def test_what_is_asked_for_is_taken() -> None:
    assert torch_device.choose_dtype("float16", CPU) == "float16"
    assert torch_device.choose_device("cpu") == CPU
    assert torch_device.choose_dtype("auto", torch.device("cuda", 0)) == "bfloat16"


@pytest.mark.parametrize("device", ["tpu", "meta", "", "cpu:x"])
def test_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="give auto, cpu, cuda or cuda:N"):
        torch_device.choose_device(device)
