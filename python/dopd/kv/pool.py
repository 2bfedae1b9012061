"""The KV memory of one worker as one tensor; `budget` says how large it is.

Which page belongs to whom is `sched`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from dopd.errors import DopdError
from dopd.kv.memory import PoolMemory


class KvPool:
    """Pages of keys and values, `[num_pages, num_layers, 2, page_size, num_kv_heads, head_dim]`
    (see kv/layout.py).

    Zeroed at the start, so that a slot which nobody wrote is a finite number. `tensor` has
    num_dummies pages more, behind the others: nobody is told of them, nobody is granted them, and
    rows that only fill up a batch write there.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        num_pages: int,
        dtype: torch.dtype,
        device: torch.device,
        num_dummies: int = 0,
    ) -> None:
        """shape: (num_layers, page_size, num_kv_heads, head_dim)."""
        num_layers, page_size, num_kv_heads, head_dim = shape
        in_all = num_pages + num_dummies
        full = (in_all, num_layers, 2, page_size, num_kv_heads, head_dim)
        self.num_pages = num_pages
        self.page_size = page_size
        self.page_bytes = math.prod(full[1:]) * dtype.itemsize
        self.descriptor: int | None = None
        self._bytes: memoryview | None = None
        if device.type == "cpu":
            # The system gives zeroed memory page by page as it is first touched, which makes a
            # large pool free until it is used; torch.zeros would write all of it now.
            self._memory = PoolMemory(in_all * self.page_bytes)
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
        content = self.tensor.view(len(self.tensor), -1).view(torch.uint8)
        for page in pages:
            # Several times as fast as one index_fill_ of all.
            content[page].fill_(byte)
