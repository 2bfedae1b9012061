"""Where and in which numbers to compute: what "auto" means for a device and a dtype."""

from __future__ import annotations

import torch

from dopd.errors import ConfigError
from dopd.kv.budget import DeviceMemory
from dopd.kv.pool import KvPool

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_THREADS = 1024
# Of a GPU's memory, what the driver keeps for a process, about: its context, its kernels. Neither
# torch counts it, nor can free memory tell it where others start at the same time.
CONTEXT_BYTES = 512 << 20


def choose_device(asked: str) -> torch.device:
    """The device for "auto", "cpu", "cuda" or "cuda:1". Raises ConfigError if it is not there."""
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise ConfigError(f"device {asked!r} is unknown; give auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        index = device.index or 0
        if index >= torch.cuda.device_count():
            raise ConfigError(
                f"device {asked} is not there: {torch.cuda.device_count()} CUDA devices found"
            )
        device = torch.device("cuda", index)
        # Streams, events and libraries that take no device take the current one.
        torch.cuda.set_device(device)
        return device
    if device.type != "cpu":
        raise ConfigError(f"device {asked!r} is not supported; give auto, cpu, cuda or cuda:N")
    return torch.device("cpu")


def choose_dtype(asked: str, device: torch.device) -> str:
    """The name of the dtype to compute in, a key of DTYPES.

    "auto" on a CPU is float32 even where bfloat16 is faster: logits near 20 are 0.125 apart in
    bfloat16, so small models answer by ties (SmolLM2 no longer names Paris), and exact tokens
    through a hand-off are what a CPU fleet is for. Raises ConfigError for an unknown one.
    """
    if asked == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    if asked not in DTYPES:
        raise ConfigError(f"dtype {asked!r} is unknown; give auto, {', '.join(DTYPES)}")
    return asked


def describe(device: torch.device) -> str:
    """Name of a device for people: "cpu", "cuda:0 NVIDIA H100"."""
    if device.type == "cpu":
        return "cpu"
    return f"{device} {torch.cuda.get_device_name(device)}"


def device_memory(device: torch.device, share: float, reserve: int = 0) -> DeviceMemory | None:
    """What this process may have of a GPU (see `DeviceMemory`); None for a CPU."""
    if device.type != "cuda":
        return None
    # Blocks that torch keeps for later would count twice, as held and as reserve.
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device) + CONTEXT_BYTES
    return DeviceMemory(describe(device), total, free, held, reserve, share)


def set_threads(threads: int) -> None:
    """Threads of one step on a CPU; the whole process shares them. Raises ConfigError."""
    if not 1 <= threads <= MAX_THREADS:
        raise ConfigError(f"threads is {threads}, must be 1 to {MAX_THREADS}")
    torch.set_num_threads(threads)


def is_sticky(error: Exception) -> bool:
    """Whether an exception means that the device fails from now on, whatever is asked of it.

    Running out of memory does not.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)


def scratch_pool(num_pages: int, page_bytes: int, device: str) -> KvPool:
    """Pages of bytes on a device, of no model: to time transfers. page_bytes: even."""
    shape = (1, 1, 1, page_bytes // 2)
    return KvPool(shape, num_pages, torch.uint8, torch.device(device))
