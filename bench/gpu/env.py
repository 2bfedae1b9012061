"""The machine: device, driver, versions; what the device copies and multiplies at best."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import time
from typing import Any

import torch

from bench.gpu.setup import Setup, peaks

PACKAGES = (
    *("torch", "flashinfer-python", "flashinfer-jit-cache", "apache-tvm-ffi"),
    *("nvidia-nccl-cu13", "nvidia-nccl-cu12"),
)
COPY_BYTES, MATRIX, TIMES = 2 << 30, 8192, 10


def main(setup: Setup) -> dict[str, Any]:
    """Versions and two rates."""
    found: dict[str, Any] = {"python": platform.python_version(), "packages": versions()}
    if setup.device == "cpu":
        return found | {"device": "cpu"}
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    name = torch.cuda.get_device_name()
    return found | {
        "device": name,
        "driver": told,
        "capability": list(torch.cuda.get_device_capability()),
        "data_sheet": peaks(name),
        "copy_bytes_per_s": copy_bytes_per_s(),
        "matmul_flop_per_s": matmul_flop_per_s(),
    }


def versions() -> dict[str, str]:
    """Those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def copy_bytes_per_s() -> float:
    """Bytes copied on the device per second; twice as many are moved, read and written."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return COPY_BYTES / seconds(lambda: target.copy_(source))


def matmul_flop_per_s() -> float:
    """bf16, square, random numbers: zeros would be faster."""
    left = torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16)
    right = torch.randn_like(left)
    return 2 * MATRIX**3 / seconds(lambda: left @ right)


def seconds(work: Any) -> float:
    """Mean of several, after three."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(TIMES):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / TIMES
