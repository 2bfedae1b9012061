"""How many GPUs local workers will see, found without torch: importing it takes seconds."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from dopd import env

NVML = "libnvidia-ml.so.1"


def count() -> int:
    """GPUs that a worker of this installation would find; 0 if its torch was built without CUDA."""
    if torch_cuda() is None:
        return 0
    return visible(env.given("CUDA_VISIBLE_DEVICES"), installed())


def torch_cuda() -> str | None:
    """CUDA version that torch was built for, read from its version file."""
    spec = find_spec("torch")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        with suppress(OSError):
            text = Path(folder, "version.py").read_text()
            found = re.search(r"^cuda\b.*= '([\d.]+)'", text, re.M)
            return found[1] if found else None
    return None


def installed(load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> int:
    """GPUs of this machine by the driver's own library; 0 without a driver, or if it fails."""
    try:
        library = load(NVML)
    except OSError:
        return 0
    number = ctypes.c_uint(0)
    if library.nvmlInit_v2() != 0:
        return 0
    try:
        failed = library.nvmlDeviceGetCount_v2(ctypes.byref(number)) != 0
    finally:
        library.nvmlShutdown()
    return 0 if failed else number.value


def visible(chosen: str | None, installed: int) -> int:
    """GPUs that CUDA shows a process with this CUDA_VISIBLE_DEVICES: up to the first entry that is
    none."""
    if chosen is None:
        return installed
    seen: set[str] = set()
    for entry in (part.strip() for part in chosen.split(",")):
        is_index = entry.isascii() and entry.isdecimal() and int(entry) < installed
        if entry in seen or not (is_index or entry.startswith(("GPU-", "MIG-"))):
            break
        seen.add(entry)
    return len(seen) if installed else 0
