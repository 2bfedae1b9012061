"""A GPU that is pretended: tensors that say they lie on one, computed on the CPU, and strict.

A real one refuses an operation on tensors of two devices; so does this. It cannot do without what
the host waits for: those are counted, and refused in a capture. It reads pinned memory late: memory
that is written again before the copy was waited for is found. `installed` puts it under torch.cuda.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.support.gpu.recorded import Tape

CPU = torch.device("cpu")
COPIES = ("aten.copy_", "aten.to", "aten._to_copy")
# Whose result, or its size, the host must know.
WAITED_FOR = (
    "aten.item",
    "aten._local_scalar_dense",
    "aten.nonzero",
    "aten.is_nonzero",
    "aten.masked_select",
    "aten.equal",
    "aten.allclose",
)
# Bytes of its memory, and of what is measured to be taken for a time.
TOTAL, PEAK = 1 << 30, 1 << 20


class OnGpu(Tensor):
    """A tensor on the pretended GPU; `inner` is where its numbers are."""

    inner: Tensor
    gpu: PretendGpu

    @staticmethod
    def __new__(cls, inner: Tensor, gpu: PretendGpu) -> OnGpu:
        """The same shape and strides, another device."""
        made: OnGpu = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=gpu.device,
        )
        made.inner, made.gpu = inner, gpu
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        """Only the mode knows what to do."""
        raise AssertionError(f"{func} of a GPU's tensor, and no GPU there")

    def tolist(self) -> Any:
        """See `Tensor.tolist`."""
        self.gpu.wait("tolist")
        return self.inner.tolist()

    def data_ptr(self) -> int:
        """See `Tensor.data_ptr`."""
        return self.inner.data_ptr()


class PretendGpu(TorchDispatchMode):
    """waits: what the host waited for, in order. captured, replays: of graphs. free: bytes, of
    TOTAL. is_broken: a kernel failed, as is said when somebody waits."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.waits: list[str] = []
        self.captured = self.replays = 0
        self.free = TOTAL
        self.is_broken = self._is_kernel = False
        self.tape: Tape | None = None
        # Copies from pinned memory that may still be under way: (number, source, as it was then).
        self.given = 0
        self._under_way: list[tuple[int, Tensor, Tensor]] = []
        self._pinned: dict[int, Tensor] = {}

    def kernel(self, double: Callable[..., Any]) -> Callable[..., Any]:
        """A double of what the device does by itself: it may look, and nobody waits."""

        def call(*args: Any, **named: Any) -> Any:
            before, self._is_kernel = self._is_kernel, True
            try:
                return double(*args, **named)
            finally:
                self._is_kernel = before

        return call

    def wait(self, what: str) -> None:
        """The host waits for all that was given."""
        if self._is_kernel:
            return
        if self.tape is not None:
            raise RuntimeError(f"{what}: operation not permitted when stream is capturing")
        if self.is_broken:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        self.waits.append(what)
        self.settle(self.given)

    def settle(self, up_to: int) -> None:
        """Copies up to this number are done: their sources must be as they were."""
        for number, source, then in self._under_way:
            if number <= up_to:
                assert torch.equal(source, then), "pinned memory was written before it was read"
        self._under_way = [one for one in self._under_way if one[0] > up_to]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = str(func).rpartition(".")[0]
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        there = {id(one.inner): one for one in tensors if isinstance(one, OnGpu)}
        here = [one for one in tensors if not isinstance(one, OnGpu)]
        asked = next((leaf for leaf in leaves if isinstance(leaf, torch.device)), None)
        is_there = bool(there) if asked is None else asked.type == "cuda"
        if name in COPIES:
            self._copied(name, args, kwargs, is_there=is_there)
        elif there and any(one.dim() for one in here):
            raise RuntimeError(f"{func}: expected all tensors on one device, {self.device} and cpu")
        if there and (name in WAITED_FOR or not (is_there or name in COPIES)):
            self.wait(name)
        inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
        is_pinned = bool(inner_kwargs.pop("pin_memory", False))
        with self.tape if self.tape is not None and is_there else nullcontext():
            out = func(*inner_args, **inner_kwargs)
        if is_pinned:
            self._pinned[out.untyped_storage().data_ptr()] = out
        if not is_there:
            return out

        def outer(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            # What was written in place is what was given.
            known = there.get(id(leaf))
            return OnGpu(leaf, self) if known is None else known

        return tree_map(outer, out)

    def _copied(self, name: str, args: Any, kwargs: Any, *, is_there: bool) -> None:
        """From one device to the other: who waits."""
        source = args[1] if name == "aten.copy_" else args[0]
        if name == "aten.copy_":
            is_there = isinstance(args[0], OnGpu)
            is_late = kwargs.get("non_blocking", len(args) > 2 and args[2])
        else:
            is_late = kwargs.get("non_blocking", False)
        if isinstance(source, OnGpu) == is_there or not source.dim():
            return
        if isinstance(source, OnGpu) or not is_late:
            self.wait(name)
        elif self.tape is not None:
            raise RuntimeError(f"{name} from the host in a capture")
        elif source.untyped_storage().data_ptr() in self._pinned:
            self.given += 1
            self._under_way.append((self.given, source, source.clone()))


def _inner(leaf: Any) -> Any:
    if isinstance(leaf, OnGpu):
        return leaf.inner
    return CPU if isinstance(leaf, torch.device) else leaf


class Stream:
    """All work is done at once, in its order; only copies from pinned memory may be late."""

    def __init__(self, gpu: PretendGpu) -> None:
        self._gpu = gpu

    def wait_stream(self, other: Stream) -> None:
        """As torch's."""

    def synchronize(self) -> None:
        """As torch's."""
        self._gpu.wait("synchronize")


class Event:
    """As torch's; one that was not recorded is done. Between two there is a millisecond."""

    def __init__(self, gpu: PretendGpu) -> None:
        self._gpu, self._at = gpu, 0

    def record(self, stream: Stream | None = None) -> None:
        """As torch's."""
        self._at = self._gpu.given

    def synchronize(self) -> None:
        """As torch's."""
        self._gpu.settle(self._at)

    def elapsed_time(self, other: Event) -> float:
        """As torch's."""
        return 1.0


class Graph:
    """As torch's CUDAGraph."""

    def __init__(self, gpu: PretendGpu) -> None:
        self._gpu = gpu
        self.tape = Tape()

    def replay(self) -> None:
        """As torch's."""
        self._gpu.replays += 1
        self.tape.replay()


@contextmanager
def _capture(gpu: PretendGpu, graph: Graph) -> Iterator[None]:
    gpu.wait("synchronize")
    gpu.tape = graph.tape
    try:
        yield
    finally:
        gpu.tape = None
    gpu.captured += 1


@contextmanager
def installed(device: torch.device) -> Iterator[PretendGpu]:
    """torch.cuda has this one device, and tensors can be made there."""
    gpu = PretendGpu(device)
    stream = Stream(gpu)
    calls: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: device.index + 1,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: "Pretended GPU",
        "get_device_properties": lambda device: SimpleNamespace(multi_processor_count=4, major=9),
        "mem_get_info": lambda device: (gpu.free, TOTAL),
        "memory_reserved": lambda device: 0,
        "max_memory_reserved": lambda device: PEAK,
        "reset_peak_memory_stats": lambda device: None,
        "empty_cache": lambda: None,
        "synchronize": lambda device=None: gpu.wait("synchronize"),
        "current_stream": lambda device=None: stream,
        "Stream": lambda device=None: Stream(gpu),
        "stream": lambda stream: nullcontext(),
        "device": lambda device: nullcontext(),
        "Event": lambda **options: Event(gpu),
        "CUDAGraph": lambda: Graph(gpu),
        "graph_pool_handle": lambda: (0, 1),
        "graph": lambda graph, **options: _capture(gpu, graph),
    }
    with ExitStack() as stack:
        for name, call in calls.items():
            stack.enter_context(patch.object(torch.cuda, name, call))
        # Both as torch's own fake tensors: without a driver nothing may be asked of it, and
        # `torch.tensor` makes on the CPU what it then moves.
        torch._C._ensureCUDADeviceGuardSet()
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        # One kind of tensor, or views of those made before cannot be taken in an engine's step.
        stack.enter_context(torch.inference_mode())
        stack.enter_context(gpu)
        yield gpu
