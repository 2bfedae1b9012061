"""A process on a machine with GPUs, played by doubles: `StubGpu`, and a pool on its device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from dopd.kv.base import PagePool, chunks_of
from tests.support.gpu.cuda import StubCuda
from tests.support.gpu.nccl import StubNccl

# What lies in the allocation before a pool and behind it: torch gives a tensor a part of one.
BEFORE_BYTES, BEHIND_BYTES = 1536, 512


class StubPool:
    """Pages in the memory of a double's device. `page` and `memory` are what a test sees of it;
    transports get `own`, which shows the host nothing."""

    def __init__(self, cuda: StubCuda, num_pages: int, page_bytes: int) -> None:
        self.num_pages = num_pages
        self.page_bytes = page_bytes
        self.device = f"cuda:{cuda.device.ordinal}"
        self.descriptor = None
        self.allocation = cuda.allocate(BEFORE_BYTES + num_pages * page_bytes + BEHIND_BYTES)
        self._base = self.allocation + BEFORE_BYTES
        self.memory = cuda.peek(self._base, num_pages * page_bytes)

    def address(self, index: int) -> int:
        """See `dopd.kv.base.PagePool`."""
        if not 0 <= index < self.num_pages:
            raise IndexError(f"page {index} is outside the pool of {self.num_pages}")
        return self._base + index * self.page_bytes

    def page(self, index: int) -> memoryview:
        """What a real device would not show."""
        start = index * self.page_bytes
        return self.memory[start : start + self.page_bytes]

    def fill(self, pages: Sequence[int], byte: int) -> None:
        """See `dopd.kv.base.PagePool`."""
        for page in pages:
            self.page(page)[:] = bytes([byte]) * self.page_bytes

    def chunks(self, pages: Sequence[int], edge_bytes: int | None) -> Iterator[memoryview]:
        """See `dopd.kv.base.PagePool`."""
        return chunks_of(self.page, pages, edge_bytes)

    @property
    def own(self) -> PagePool:
        """As the process that has the device knows it."""
        return _Unseen(self)


class _Unseen:
    """A pool whose pages are not the host's: who asks for one takes it for a pool on the CPU."""

    def __init__(self, pool: StubPool) -> None:
        self.num_pages, self.page_bytes = pool.num_pages, pool.page_bytes
        self.device, self.descriptor = pool.device, None
        self.address, self.fill, self.chunks = pool.address, pool.fill, pool.chunks

    def page(self, index: int) -> memoryview:
        """Never."""
        raise AssertionError(f"page {index} is on {self.device}")


class StubGpu:
    """The libraries of one process of a test. folder: see `gpu.cuda.shared_folder`."""

    def __init__(self, folder: Path, ordinal: int = 0) -> None:
        self._folder = folder
        self.cuda = StubCuda(folder, ordinal)

    @cached_property
    def nccl(self) -> StubNccl:
        """Its copy of libnccl."""
        return StubNccl(self._folder, self.cuda)

    def pool(self, num_pages: int, page_bytes: int) -> StubPool:
        """A pool on the device."""
        return StubPool(self.cuda, num_pages, page_bytes)

    def left(self) -> dict[str, int]:
        """What was not given back so far."""
        kept = {**self.cuda.live(), **(self.nccl.live() if "nccl" in vars(self) else {})}
        return {name: count for name, count in kept.items() if count}

    def check(self) -> None:
        """Nothing was done that a real library would not forgive."""
        self.cuda.check()
        if "nccl" in vars(self):
            self.nccl.check()
