"""The KV memory of one worker as one tensor, and how large it is.

Which page belongs to whom is `sched`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from dopd.errors import ConfigError, DopdError
from dopd.kv.layout import pages_for
from dopd.kv.machine import usable_memory
from dopd.kv.memory import PoolMemory
from dopd.kv.size import parse_memory

DEFAULT_CPU_MEMORY = 512 << 20
# Of what the weights leave free; the rest is for activations and the workspace of kernels.
DEFAULT_CUDA_SHARE = 0.85
MAX_MACHINE_SHARE = 0.9
MIN_PAGES = 2


class KvPool:
    """Pages of keys and values, `[num_pages, num_layers, 2, page_size, num_kv_heads, head_dim]`
    (see kv/layout.py).

    Zeroed at the start, so that a slot which nobody wrote is a finite number.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        num_pages: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """shape: (num_layers, page_size, num_kv_heads, head_dim)."""
        num_layers, page_size, num_kv_heads, head_dim = shape
        full = (num_pages, num_layers, 2, page_size, num_kv_heads, head_dim)
        self.num_pages = num_pages
        self.page_size = page_size
        self.page_bytes = math.prod(full[1:]) * dtype.itemsize
        self.descriptor: int | None = None
        self._bytes: memoryview | None = None
        if device.type == "cpu":
            # The system gives zeroed memory page by page as it is first touched, which makes a
            # large pool free until it is used; torch.zeros would write all of it now.
            self._memory = PoolMemory(num_pages * self.page_bytes)
            self.descriptor = self._memory.descriptor
            self._bytes = memoryview(self._memory.buffer)
            self.tensor = torch.frombuffer(self._memory.buffer, dtype=dtype).view(full)
        else:
            self.tensor = torch.zeros(full, dtype=dtype, device=device)

    def page(self, index: int) -> memoryview:
        """Writable bytes of one page, all layers. CPU only.

        Raises IndexError for a page outside the pool, DopdError on another device.
        """
        if not 0 <= index < self.num_pages:
            raise IndexError(f"page {index} is outside the pool of {self.num_pages}")
        if self._bytes is None:
            raise DopdError(
                f"pages on {self.tensor.device} have no address here; use a device transport"
            )
        return self._bytes[index * self.page_bytes : (index + 1) * self.page_bytes]

    def fill(self, pages: Sequence[int], byte: int) -> None:
        """See `dopd.kv.base.PagePool`. 255 in every byte is NaN in each of our dtypes."""
        content = self.tensor.view(self.num_pages, -1).view(torch.uint8)
        for page in pages:
            # Several times as fast as one index_fill_ of all.
            content[page].fill_(byte)


def memory_for(asked: str | None, device: torch.device) -> int:
    """Bytes to spend on the pool: what was asked for, else a default that suits the device.

    Called when the weights are loaded, so that free device memory is what they left. Raises
    ConfigError if more was asked for than the device can give.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        most, default = free, int(free * DEFAULT_CUDA_SHARE)
    else:
        most, default = int(usable_memory() * MAX_MACHINE_SHARE), DEFAULT_CPU_MEMORY
    if asked is None:
        return min(default, most)
    num_bytes = parse_memory(asked)
    if num_bytes > most:
        raise ConfigError(
            f"kv-memory {asked} is more than the {most >> 20} MiB that {device} can give"
        )
    return num_bytes


def pages_in(memory_bytes: int, page_bytes: int, page_size: int, max_model_len: int) -> int:
    """Pages that fit in the memory. Raises ConfigError if the longest sequence would not."""
    num_pages = memory_bytes // page_bytes
    needed = max(MIN_PAGES, pages_for(max_model_len, page_size))
    if num_pages < needed:
        raise ConfigError(
            f"kv-memory of {memory_bytes >> 20} MiB holds {num_pages * page_size} tokens, fewer "
            f"than one sequence of max-model-len {max_model_len}; give at least "
            f"{-(-needed * page_bytes >> 20)} MiB or lower max-model-len"
        )
    return num_pages
