"""A double of CUDA graph capture on the CPU: it records operations on tensors and does them again.

Like a graph, a replay knows the memory that was used when it was captured, and nothing else: Python
code does not run again, numbers are those of then. Before a replay all memory that the captured
function made for itself is poisoned: who counts on what an earlier call left there gets NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The host would have to wait for what they give.
NOT_IN_CAPTURES = (
    "aten.item",
    "aten._local_scalar_dense",
    "aten.nonzero",
    "aten.is_nonzero",
    "aten.equal",
)
Operation = tuple[Any, tuple[Any, ...], dict[str, Any], Any]


class RecordedCapture:
    """`dopd.engine.graphs.Capture`. captured: how many graphs there are; replays: of all."""

    def __init__(self) -> None:
        self.captured = 0
        self.replays = 0

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record what the function does."""
        tape = Tape()
        with tape:
            function()
        self.captured += 1

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return replay


class Tape(TorchDispatchMode):
    """What was done to tensors while it was entered."""

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[Operation] = []
        self._seen: set[int] = set()
        self._fresh: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if str(func).rsplit(".", 1)[0] in NOT_IN_CAPTURES:
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        self._seen |= {_memory(tensor) for tensor in _tensors((args, kwargs))}
        out = func(*args, **kwargs)
        for tensor in _tensors(out):
            if _memory(tensor) not in self._seen:
                self._seen.add(_memory(tensor))
                self._fresh.append(tensor)
        self._operations.append((func, args, kwargs, out))
        return out

    @torch.inference_mode()
    def replay(self) -> None:
        for tensor in self._fresh:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 1 << 6)
        for func, args, kwargs, out in self._operations:
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(out), _tensors(again), strict=True):
                # Views, and what was written in place, are there already.
                if _memory(old) != _memory(new):
                    old.copy_(new)


def _tensors(tree: Any) -> Iterator[Tensor]:
    # Weights that oneDNN packed have no memory that one could name; they stay where they are.
    leaves = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
    return (leaf for leaf in leaves if not leaf.is_mkldnn)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
