"""The way of a step's metadata to a GPU: one copy from pinned memory, which waits for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

# Parts start at multiples of this many numbers: 128 bytes, one cache line of a GPU.
ALIGNMENT = 32


class Staging:
    """int32 tensors on their way from the CPU to `device`, in the order of the current stream.

    What is written here is read later, by the device: `wait` before the next step's, `mark` after
    the last copy of a step's. On a CPU there is nothing to wait for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._host = pinned(0, device)
        self._copied = _event() if device.type == "cuda" else None

    def wait(self) -> None:
        """Return when all that was given before the last `mark` has been copied."""
        if self._copied is not None:
            self._copied.synchronize()

    def mark(self) -> None:
        """All copies of a step have been given to the stream."""
        if self._copied is not None:
            self._copied.record()

    def put(self, *parts: Tensor) -> list[Tensor]:
        """Copies of these tensors on the device, in memory of their own."""
        starts = _starts([len(part) for part in parts])
        if starts[-1] > len(self._host):
            # Twice what is needed, so that rows which grow by a page do not ask each time.
            self._host = pinned(2 * starts[-1], self.device)
        _write(self._host, parts, starts)
        there = self._host[: starts[-1]].to(self.device, non_blocking=True, copy=True)
        return _views(there, [len(part) for part in parts], starts)


class FixedStaging:
    """The same for tensors that stay at one place on the device, up to the sizes given."""

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self._starts = _starts(sizes)
        self._host = pinned(self._starts[-1], device)
        self._there = torch.zeros(self._starts[-1], dtype=torch.int32, device=device)
        self.parts = _views(self._there, sizes, self._starts)

    def fill(self, *parts: Tensor) -> None:
        """Write the beginning of each part. What lies behind the end of the last is not copied."""
        for part, place in zip(parts, self.parts, strict=True):
            if len(part) > len(place):
                raise ValueError(f"{len(part)} numbers for a buffer of {len(place)}")
        _write(self._host, parts, self._starts)
        end = self._starts[-2] + len(parts[-1])
        self._there[:end].copy_(self._host[:end], non_blocking=True)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def pinned(size: int, device: torch.device) -> Tensor:
    """int32 memory that `device` can read by itself."""
    return torch.zeros(size, dtype=torch.int32, pin_memory=device.type == "cuda")


def _starts(sizes: Sequence[int]) -> list[int]:
    """Where parts of these sizes begin, and at last where all ends."""
    return list(accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0))


def _write(host: Tensor, parts: Sequence[Tensor], starts: Sequence[int]) -> None:
    for part, start in zip(parts, starts, strict=False):
        host[start : start + len(part)] = part


def _views(memory: Tensor, sizes: Sequence[int], starts: Sequence[int]) -> list[Tensor]:
    ends = (start + size for start, size in zip(starts, sizes, strict=False))
    return [memory[start:end] for start, end in zip(starts, ends, strict=False)]
