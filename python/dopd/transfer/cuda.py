"""The CUDA driver, as far as moving pages needs it. Nothing else of dopd calls libcuda.

Called by `cuda_ipc`, `nccl` and `staging`, from link threads. A bare binding (ctypes), since torch
has no call that opens a handle or asks a stream with a time limit; both share the device's primary
context, so that a pointer of torch is a pointer here. Names and types are those of cuda.h 12.9,
`_v2` where the header redirects to it; all of them are in drivers since 11.4. ctypes lets other
threads run during a call. Whatever waits does so by asking again, with a limit: a device that hangs
must not take a thread with it.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass, field

from dopd.errors import LinkError

log = logging.getLogger(__name__)

LIBRARY = "libcuda.so.1"
UUID_BYTES = 16
IPC_HANDLE_BYTES = 64

NOT_READY = 600
_LAZY_ENABLE_PEER_ACCESS = 0x1
_STREAM_NON_BLOCKING = 0x1
_EVENT_DISABLE_TIMING = 0x2
_HOST_ALLOC_PORTABLE = 0x1

# Of a call that gives something back: it may return the error of earlier work, and then not do it.
RELEASE_TRIES = 3
# A frame takes 50 us at the speed of a device's memory, and a sleep at least as long: so long it is
# waited for without sleeping.
SPIN_S = 200e-6
POLL_MIN_S, POLL_MAX_S = 20e-6, 1e-3


class _Uuid(ctypes.Structure):
    _fields_ = (("bytes", c_char * UUID_BYTES),)


class _IpcMemHandle(ctypes.Structure):
    _fields_ = (("reserved", c_char * IPC_HANDLE_BYTES),)


_address = c_uint64  # CUdeviceptr
_device = c_int  # CUdevice; contexts, streams and events are pointers

PROTOTYPES: dict[str, tuple[type, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(_device), c_int),
    "cuDeviceGetUuid_v2": (POINTER(_Uuid), _device),
    "cuDeviceCanAccessPeer": (POINTER(c_int), _device, _device),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), _device),
    "cuDevicePrimaryCtxRelease_v2": (_device,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamQuery": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventQuery": (c_void_p,),
    "cuEventDestroy_v2": (c_void_p,),
    "cuMemcpyAsync": (_address, _address, c_size_t, c_void_p),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemGetAddressRange_v2": (POINTER(_address), POINTER(c_size_t), _address),
    "cuIpcGetMemHandle": (POINTER(_IpcMemHandle), _address),
    "cuIpcOpenMemHandle_v2": (POINTER(_address), _IpcMemHandle, c_uint),
    "cuIpcCloseMemHandle": (_address,),
}


@dataclass(frozen=True, slots=True)
class IpcHandle:
    """An allocation, to be opened by another process; `offset`: of the address that was asked
    about. size: of the whole allocation."""

    handle: bytes = field(repr=False)
    offset: int
    size: int


class Driver:
    """The library. Every call raises LinkError with the call's name and the code's."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        # .context: the one that is current in this thread.
        self._current = threading.local()

    @classmethod
    def open(cls, path: str | None = None) -> Driver:
        """Load and initialise the driver. path: another library than the system's, for tests.

        Raises LinkError where there is none, or no device.
        """
        try:
            library = ctypes.CDLL(path or LIBRARY)
            for name, arguments in PROTOTYPES.items():
                function = getattr(library, name)
                function.argtypes, function.restype = arguments, c_int
        except (OSError, AttributeError) as error:
            raise LinkError(f"no usable CUDA driver: {error}") from error
        driver = cls(library)
        driver.call("cuInit", 0)
        return driver

    def num_devices(self) -> int:
        """Devices that this process sees; ordinals count them."""
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        return count.value

    def uuid(self, ordinal: int) -> bytes:
        """16 bytes: the same for one device in every process, whatever its ordinal there."""
        uuid = _Uuid()
        self.call("cuDeviceGetUuid_v2", byref(uuid), self._get(ordinal))
        return bytes(uuid)

    def find(self, uuid: bytes) -> int | None:
        """The ordinal of a device; None: this process does not see it."""
        ordinals = range(self.num_devices())
        return next((ordinal for ordinal in ordinals if self.uuid(ordinal) == uuid), None)

    def can_access(self, ordinal: int, peer: int) -> bool:
        """Whether a device reads the memory of another; its own always."""
        if ordinal == peer:
            return True
        answer = c_int()
        self.call("cuDeviceCanAccessPeer", byref(answer), self._get(ordinal), self._get(peer))
        return bool(answer.value)

    def retain(self, ordinal: int) -> Device:
        """A device to work on, by its primary context."""
        context = c_void_p()
        device = self._get(ordinal)
        self.call("cuDevicePrimaryCtxRetain", byref(context), device)
        return Device(self, ordinal, device, context)

    def call(self, name: str, *arguments: object) -> None:
        """One call of the driver."""
        code = self.code(name, *arguments)
        if code:
            raise LinkError(f"{name}: {self.error_name(code)} ({code})")

    def code(self, name: str, *arguments: object) -> int:
        """One call of the driver; what it returns."""
        code: int = getattr(self._library, name)(*arguments)
        return code

    def error_name(self, code: int) -> str:
        """Name of a CUresult."""
        name = c_char_p()
        self._library.cuGetErrorName(code, byref(name))
        return "unknown error" if name.value is None else name.value.decode(errors="replace")

    def use(self, context: c_void_p) -> None:
        """Make a context current in this thread."""
        if getattr(self._current, "context", None) != context.value:
            self.call("cuCtxSetCurrent", context)
            self._current.context = context.value

    def _get(self, ordinal: int) -> c_int:
        device = c_int()
        self.call("cuDeviceGet", byref(device), ordinal)
        return device


class Device:
    """One device of this process. Its calls work in any thread."""

    def __init__(self, driver: Driver, ordinal: int, device: c_int, context: c_void_p) -> None:
        self.driver = driver
        self.ordinal = ordinal
        self._device = device
        self._context = context

    def use(self) -> None:
        """Make it this thread's device; every call of ours does."""
        self.driver.use(self._context)

    def call(self, name: str, *arguments: object) -> None:
        """One call of the driver, on this device."""
        self.use()
        self.driver.call(name, *arguments)

    def give_back(self, name: str, *arguments: object) -> None:
        """A call that gives something back: tried again, and told in the log if it never works.

        Never raises.
        """
        error: LinkError | None = None
        for _ in range(RELEASE_TRIES):
            try:
                self.call(name, *arguments)
            except LinkError as failure:
                error = failure
            else:
                return
        log.error("%s: something of device %d is lost", error, self.ordinal)

    def release(self) -> None:
        """We are done with it. The context lives on while torch holds it."""
        self.give_back("cuDevicePrimaryCtxRelease_v2", self._device)

    def stream(self) -> Stream:
        """A queue of its own, beside those of torch."""
        handle = c_void_p()
        self.call("cuStreamCreate", byref(handle), _STREAM_NON_BLOCKING)
        return Stream(self, handle)

    def pin(self, num_bytes: int) -> PinnedBuffer:
        """Memory of the host that the device copies from and to by itself."""
        pointer = c_void_p()
        self.call("cuMemHostAlloc", byref(pointer), num_bytes, _HOST_ALLOC_PORTABLE)
        return PinnedBuffer(self, pointer, num_bytes)

    def ipc_handle(self, address: int) -> IpcHandle:
        """What another process opens to read the allocation that this address lies in.

        LinkError also for memory that has no such handle, since torch did not get it by cudaMalloc.
        """
        base, size = self.address_range(address)
        handle = _IpcMemHandle()
        try:
            self.call("cuIpcGetMemHandle", byref(handle), base)
        except LinkError as error:
            raise LinkError(
                f"{error}: other processes cannot open this memory; unset expandable_segments and "
                "cudaMallocAsync in PYTORCH_CUDA_ALLOC_CONF"
            ) from error
        return IpcHandle(bytes(handle), address - base, size)

    def address_range(self, address: int) -> tuple[int, int]:
        """Base and size of the allocation that an address lies in, ours or one that we opened."""
        base, size = _address(), c_size_t()
        self.call("cuMemGetAddressRange_v2", byref(base), byref(size), address)
        return base.value, size.value

    def ipc_open(self, handle: bytes) -> int:
        """Map another process's allocation: our address of its base. To be closed once for each
        time it was opened."""
        address = _address()
        opened = _IpcMemHandle.from_buffer_copy(handle)
        self.call("cuIpcOpenMemHandle_v2", byref(address), opened, _LAZY_ENABLE_PEER_ACCESS)
        return address.value

    def ipc_close(self, address: int) -> None:
        """Unmap it. No copy of it may be under way. Never raises."""
        self.give_back("cuIpcCloseMemHandle", address)


class _Queued:
    """What a device works off: a stream, or a point in one."""

    # Calls that ask whether it is done, and that give it back.
    _QUERY: str
    _DESTROY: str

    def __init__(self, device: Device, handle: c_void_p) -> None:
        self._device = device
        self._handle = handle
        self._is_closed = False

    @property
    def handle(self) -> int:
        """The driver's own, for other libraries."""
        return self._handle.value or 0

    def is_done(self) -> bool:
        """Whether all that was queued before is done. Raises LinkError if it failed."""
        return is_done(self._device, self._QUERY, self._handle)

    def close(self) -> None:
        """Give it back; once, however often it is called. Never raises."""
        if not self._is_closed:
            self._is_closed = True
            self._device.give_back(self._DESTROY, self._handle)


class Stream(_Queued):
    """Work for a device, done in order. handle: CUstream. Used by one thread at a time."""

    _QUERY, _DESTROY = "cuStreamQuery", "cuStreamDestroy_v2"

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        """Queue a copy between addresses: of devices, or of pinned buffers."""
        self._device.call("cuMemcpyAsync", target, source, num_bytes, self._handle)

    def record(self) -> Event:
        """Something to wait for: all that was queued up to now."""
        handle = c_void_p()
        self._device.call("cuEventCreate", byref(handle), _EVENT_DISABLE_TIMING)
        event = Event(self._device, handle)
        try:
            self._device.call("cuEventRecord", handle, self._handle)
        except LinkError:
            event.close()
            raise
        return event

    def synchronise(self, within_s: float) -> bool:
        """Wait until all that was queued is done; False: not yet. Raises LinkError if it failed."""
        return poll(self.is_done, within_s)


class Event(_Queued):
    """A point in a stream. handle: CUevent. Closed by who got it."""

    _QUERY, _DESTROY = "cuEventQuery", "cuEventDestroy_v2"

    def wait(self, within_s: float) -> bool:
        """Wait until the stream has come here; False: not yet. Raises LinkError."""
        return poll(self.is_done, within_s)


class PinnedBuffer:
    """num_bytes of the host's memory. address: for copies; view: for us."""

    def __init__(self, device: Device, pointer: c_void_p, num_bytes: int) -> None:
        assert pointer.value is not None
        self.address = pointer.value
        self.view = memoryview((c_char * num_bytes).from_address(self.address)).cast("B")
        self._device = device
        self._pointer = pointer
        self._is_closed = False

    def close(self) -> None:
        """Give it back; nobody may use the view, or a part of it, any more. Never raises."""
        if not self._is_closed:
            self._is_closed = True
            self.view.release()
            self._device.give_back("cuMemFreeHost", self._pointer)


def is_done(device: Device, query: str, handle: c_void_p) -> bool:
    """Ask a stream or an event once. Raises LinkError if its work failed."""
    device.use()
    code = device.driver.code(query, handle)
    if code and code != NOT_READY:
        raise LinkError(f"{query}: {device.driver.error_name(code)} ({code})")
    return code == 0


def poll(condition: Callable[[], bool], within_s: float) -> bool:
    """Ask until it holds, or for so long; whether it held."""
    begun = time.monotonic()
    pause_s = POLL_MIN_S
    while not condition():
        elapsed_s = time.monotonic() - begun
        if elapsed_s >= within_s:
            return False
        if elapsed_s >= SPIN_S:
            time.sleep(min(pause_s, within_s - elapsed_s))
            pause_s = min(2 * pause_s, POLL_MAX_S)
    return True
