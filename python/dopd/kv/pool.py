"""The KV memory of one worker as one tensor; `budget` says how large it is.

Which page belongs to whom is `sched`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dopd.errors import DopdError
from dopd.kv.base import chunks_of
from dopd.kv.memory import PoolMemory

# What is gathered at once of pages on a GPU, and copied to the host in one go.
GATHERED_BYTES = 16 << 20


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
            # Of all that is done below, which must not wait for a step's kernels.
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # No other stream may come before the zeros.
            torch.cuda.synchronize(device)
        self.device = str(self.tensor.device)
        self._content = self.tensor.view(in_all, -1).view(torch.uint8)

    def page(self, index: int) -> memoryview:
        """See `dopd.kv.base.PagePool`. Raises IndexError for a page outside the pool."""
        self._check(index)
        if self._bytes is None:
            raise DopdError(f"page {index} is on {self.device}: only the device can read it")
        return self._bytes[index * self.page_bytes : (index + 1) * self.page_bytes]

    def address(self, index: int) -> int:
        """See `dopd.kv.base.PagePool`. Raises IndexError for a page outside the pool."""
        self._check(index)
        if self._bytes is not None:
            raise DopdError(
                f"page {index} is on the {self.device}; device transports cannot move it"
            )
        return self.tensor.data_ptr() + index * self.page_bytes

    def fill(self, pages: Sequence[int], byte: int) -> None:
        """See `dopd.kv.base.PagePool`. 255 in every byte is NaN in each of our dtypes."""
        if self._bytes is None:
            with self._beside_steps():
                fill_at_once(self._content, pages, byte)
            self._stream.synchronize()
            return
        for page in pages:
            # Several times as fast as one index_fill_ of all.
            self._content[page].fill_(byte)

    def chunks(self, pages: Sequence[int], edge_bytes: int | None) -> Iterator[memoryview]:
        """See `dopd.kv.base.PagePool`."""
        if self._bytes is not None:
            yield from chunks_of(self.page, pages, edge_bytes)
            return
        most = max(1, GATHERED_BYTES // self.page_bytes) if edge_bytes is None else len(pages)
        for start in range(0, len(pages), max(1, most)):
            # To memory that is not pinned: there when the copy returns.
            with self._beside_steps():
                data = gathered(self._content, pages[start : start + most], edge_bytes)
            yield data

    @contextmanager
    def _beside_steps(self) -> Iterator[None]:
        """On our own stream. The device comes first: a link's thread stands at device 0, to which
        torch would go back, and so make a context there: hundreds of MiB of a GPU not ours."""
        with torch.cuda.device(self.tensor.device), torch.cuda.stream(self._stream):
            yield

    def _check(self, index: int) -> None:
        if not 0 <= index < self.num_pages:
            raise IndexError(f"page {index} is outside the pool of {self.num_pages}")


def fill_at_once(content: Tensor, pages: Sequence[int], byte: int) -> None:
    """Rows of a byte tensor, without a call for each: eight bytes at a time where they fit."""
    index = torch.tensor(pages, dtype=torch.int64, device=content.device)
    if content.shape[1] % 8:
        content.index_fill_(0, index, byte)
    else:
        word = int.from_bytes(bytes([byte]) * 8, "little", signed=True)
        content.view(torch.int64).index_fill_(0, index, word)


def gathered(content: Tensor, pages: Sequence[int], edge_bytes: int | None) -> memoryview:
    """Rows of a byte tensor, or their ends, one after another in the host's memory, by one copy."""
    index = torch.tensor(pages, dtype=torch.int64, device=content.device)
    if edge_bytes is None:
        rows = content.index_select(0, index)
    else:
        ends = (content[:, :edge_bytes], content[:, -edge_bytes:])
        rows = torch.cat([end.index_select(0, index) for end in ends], dim=1)
    host = bytearray(rows.numel())
    if host:
        torch.frombuffer(host, dtype=torch.uint8).view(rows.shape).copy_(rows)
    return memoryview(host)
