"""The GPU of this machine in the place of a double: `RealGpu`, for the tests that have one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from dopd.kv.base import chunks_of
from dopd.transfer import nccl
from dopd.transfer.cuda import Driver

DEVICE = "cuda:0"


class RealBytes:
    """Memory of the device, as far as tests look at pages: it is copied each time."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __setitem__(self, everything: slice, data: Any) -> None:
        import torch

        assert everything == slice(None)
        self._tensor.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        if self._tensor.is_cuda:
            torch.cuda.synchronize(self._tensor.device)

    def __bytes__(self) -> bytes:
        return bytes(self._tensor.cpu().numpy())

    def __iter__(self) -> Iterator[int]:
        return iter(bytes(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RealBytes) and bytes(self) == bytes(other)

    __hash__ = None  # type: ignore[assignment]


class RealPool:
    """As `StubPool`."""

    descriptor = None

    def __init__(self, num_pages: int, page_bytes: int, device: str = DEVICE) -> None:
        import torch

        self.num_pages, self.page_bytes, self.device = num_pages, page_bytes, device
        self._tensor = torch.zeros(num_pages, page_bytes, dtype=torch.uint8, device=device)
        if self._tensor.is_cuda:
            # No other stream may come before the zeros.
            torch.cuda.synchronize(device)
        self.own = self

    @property
    def memory(self) -> RealBytes:
        """All of it."""
        return RealBytes(self._tensor.view(-1))

    def page(self, index: int) -> RealBytes:
        """One page."""
        return RealBytes(self._tensor[index])

    def address(self, index: int) -> int:
        """See `dopd.kv.base.PagePool`."""
        address: int = self._tensor.data_ptr() + index * self.page_bytes
        return address

    def fill(self, pages: Sequence[int], byte: int) -> None:
        """See `dopd.kv.base.PagePool`."""
        for page in pages:
            self.page(page)[:] = bytes([byte]) * self.page_bytes

    def chunks(self, pages: Sequence[int], edge_bytes: int | None) -> Iterator[memoryview]:
        """See `dopd.kv.base.PagePool`."""
        return chunks_of(lambda page: memoryview(bytes(self.page(page))), pages, edge_bytes)


class RealGpu:
    """As `StubGpu`; what is left on a real device only its own tools tell."""

    def __init__(self) -> None:
        # Both ends of a test are on it.
        nccl.set_environment(is_loopback=True, is_device_shared=True)
        self.cuda = SimpleNamespace(device=Driver.open().retain(0))
        self.nccl = SimpleNamespace(nccl=nccl.Nccl.load())

    def pool(self, num_pages: int, page_bytes: int) -> RealPool:
        """A pool on the device."""
        return RealPool(num_pages, page_bytes)

    def left(self) -> dict[str, int]:
        """See the class."""
        return {}

    def check(self) -> None:
        """See the class."""
