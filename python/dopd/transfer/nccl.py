"""NCCL, as far as two ranks that send pages need it. Nothing else of dopd calls libnccl.

Called by `nccl_link`. A bare binding (ctypes): torch.distributed knows one fixed world, and none of
its waits has a limit. A communicator here has two ranks and no blocking call but `abort`; it can be
dropped at any time, whatever the other rank does. Prototypes and meanings are those of nccl.h 2.28
to 2.30; what the header does not tell is read in init.cc, group.cc and bootstrap.cc of these.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import socket
import struct
import threading
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_void_p
from pathlib import Path

from dopd import env
from dopd.errors import LinkError

log = logging.getLogger(__name__)

LIBRARY = "libnccl.so.2"
# The oldest that was read; torch 2.11, the oldest that we take, brings 2.28.9.
VERSION_MIN = 22800
UNIQUE_ID_BYTES = 128
NUM_RANKS = 2
# Blocks of threads that a communicator takes from its device, and channels that it has buffers for:
# two carry what a hand-off needs and leave the rest to the model.
MAX_CTAS = 2
# The end of an id that nobody came for.
RETIRE_S = 1.0

SUCCESS, IN_PROGRESS = 0, 7
_CONFIG_MAGIC, _CONFIG_VERSION = 0xCAFEBEEF, 22800
_UNDEFINED = -(1 << 31)
_UINT8 = 1
_SOCKET_BOOTSTRAP = 1


class _UniqueId(ctypes.Structure):
    _fields_ = (("internal", c_char * UNIQUE_ID_BYTES),)


class Config(ctypes.Structure):
    """ncclConfig_t of 2.28, 80 bytes: later libraries read size and version, and take it."""

    _fields_ = (
        ("size", c_size_t),
        ("magic", c_uint),
        ("version", c_uint),
        ("blocking", c_int),
        ("cga_cluster_size", c_int),
        ("min_ctas", c_int),
        ("max_ctas", c_int),
        ("net_name", c_char_p),
        ("split_share", c_int),
        ("traffic_class", c_int),
        ("comm_name", c_char_p),
        ("collnet_enable", c_int),
        ("cta_policy", c_int),
        ("shrink_share", c_int),
        ("nvls_ctas", c_int),
        ("channels_per_net_peer", c_int),
        ("nvlink_centric_sched", c_int),
    )


_comm = c_void_p  # ncclComm_t; streams are pointers, results and data types int

PROTOTYPES: dict[str, tuple[type, ...]] = {
    "ncclGetVersion": (POINTER(c_int),),
    "ncclGetUniqueId": (POINTER(_UniqueId),),
    "ncclCommInitRankConfig": (POINTER(_comm), c_int, _UniqueId, c_int, POINTER(Config)),
    "ncclCommGetAsyncError": (_comm, POINTER(c_int)),
    "ncclCommAbort": (_comm,),
    "ncclGroupStart": (),
    "ncclGroupEnd": (),
    "ncclSend": (c_void_p, c_size_t, c_int, c_int, _comm, c_void_p),
    "ncclRecv": (c_void_p, c_size_t, c_int, c_int, _comm, c_void_p),
}


def config() -> Config:
    """How we want a communicator: no call waits, few channels, the rest as the library does it."""
    wanted = Config(ctypes.sizeof(Config), _CONFIG_MAGIC, _CONFIG_VERSION)
    for name, kind in Config._fields_[3:]:
        if kind is c_int:
            setattr(wanted, name, _UNDEFINED)
    wanted.blocking, wanted.max_ctas = 0, MAX_CTAS
    return wanted


def set_environment(*, is_loopback: bool, is_device_shared: bool) -> None:
    """What the library reads when it is first used, as far as the user has not said it.

    is_loopback: nobody outside of this machine is to reach the ports that it opens, and it opens
    some for every pair. is_device_shared: two ranks on one device are meant, and no mistake; the
    library takes that from 2.30 on.
    """
    if is_loopback:
        env.set_foreign("NCCL_SOCKET_IFNAME", "lo")
    # Multicast between many GPUs: memory that two ranks have no use for.
    env.set_foreign("NCCL_NVLS_ENABLE", "0")
    if is_device_shared:
        env.set_foreign("NCCL_MULTI_RANK_GPU_ENABLE", "1")


def candidates() -> list[str]:
    """Where the library may be, best first: in the wheel that torch brings, then the system's."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [Path(folder) / "nccl" / "lib" / LIBRARY for folder in folders]
    return [*(str(path) for path in found if path.exists()), LIBRARY]


class Nccl:
    """The library. Every call raises LinkError with the call's name and the result's.

    version: 2.28.9 is 22809.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name, arguments in PROTOTYPES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int
        library.ncclGetErrorString.restype = library.ncclGetLastError.restype = c_char_p
        library.ncclGetErrorString.argtypes = (c_int,)
        library.ncclGetLastError.argtypes = (_comm,)
        version = c_int()
        self.call("ncclGetVersion", byref(version))
        self.version = version.value

    @classmethod
    def load(cls, path: str | None = None) -> Nccl:
        """Load it. path: this one and no other. Raises LinkError that says what was tried."""
        # All pairs would get the same id.
        if env.foreign("NCCL_COMM_ID"):
            raise LinkError("NCCL_COMM_ID is set, which joins all pairs in one: unset it")
        # It stands above what a communicator asks for, and no limit of ours would hold.
        if (blocking := env.foreign("NCCL_COMM_BLOCKING")) not in (None, "0"):
            raise LinkError(
                f"NCCL_COMM_BLOCKING is {blocking!r}, with which calls wait for ever: unset it"
            )
        errors = []
        for candidate in [path] if path else candidates():
            try:
                found = cls(ctypes.CDLL(candidate))
            except (OSError, AttributeError, LinkError) as error:
                errors.append(f"{candidate}: {error}")
                continue
            if found.version >= VERSION_MIN:
                return found
            least = version_text(VERSION_MIN)
            errors.append(f"{candidate}: version {version_text(found.version)}, {least} is needed")
        raise LinkError(
            f"no usable NCCL: {'; '.join(errors)}; torch for CUDA brings one (nvidia-nccl-cu13)"
        )

    def unique_id(self) -> bytes:
        """A new pair's id. The library listens for its ranks until both came, or it is retired."""
        unique_id = _UniqueId()
        self.call("ncclGetUniqueId", byref(unique_id))
        return bytes(unique_id)

    def retire(self, unique_id: bytes) -> None:
        """See to it that nobody waits any more for the ranks of an id of ours. Never raises.

        The library would wait for ever, with a thread and a port for each id. It gives up when a
        rank that knows the id's first bytes hangs up, which is what we do.
        """
        address = address_of(unique_id)
        if address is None:
            log.warning("NCCL %s: its ids say no address", version_text(self.version))
            return
        try:
            with socket.create_connection(address, timeout=RETIRE_S) as sock:
                sock.sendall(unique_id[:8] + struct.pack("=i", _SOCKET_BOOTSTRAP))
        except OSError as error:
            # Both ranks came after all.
            log.debug("id of NCCL at %s:%d: %s", *address, error)

    def join(self, unique_id: bytes, rank: int) -> Communicator:
        """Begin to join the other rank; `is_ready` tells when. On this thread's device.

        Raises LinkError.
        """
        handle, wanted = _comm(), config()
        own_id = _UniqueId.from_buffer_copy(unique_id)
        name = "ncclCommInitRankConfig"
        code = self.code(name, byref(handle), NUM_RANKS, own_id, rank, byref(wanted))
        if code in (SUCCESS, IN_PROGRESS) and handle.value is not None:
            return Communicator(self, handle, peer=1 - rank)
        if handle.value is not None:
            Communicator(self, handle, peer=1 - rank).abort()
        raise LinkError(self.text(name, code))

    def call(self, name: str, *arguments: object) -> None:
        """One call of the library."""
        code = self.code(name, *arguments)
        if code not in (SUCCESS, IN_PROGRESS):
            raise LinkError(self.text(name, code))

    def code(self, name: str, *arguments: object) -> int:
        """One call of the library; what it returns."""
        code: int = getattr(self._library, name)(*arguments)
        return code

    def text(self, name: str, code: int) -> str:
        """A failure, in words; the library's last error is most often of this one."""
        kind = (self._library.ncclGetErrorString(code) or b"").decode(errors="replace")
        last = (self._library.ncclGetLastError(None) or b"").decode(errors="replace").strip()
        return f"{name}: {kind} ({code})" + (f": {last}" if last else "")


class Communicator:
    """One of two ranks. One thread at a time is in a call; nothing is called after `abort`.

    No call but `abort` waits for the other rank.
    """

    def __init__(self, nccl: Nccl, handle: c_void_p, peer: int) -> None:
        self._nccl = nccl
        self._handle = handle
        self._peer = peer
        self._lock = threading.Lock()
        self._is_aborted = False

    def is_ready(self) -> bool:
        """Whether all that was asked of it so far is under way on its stream. Raises LinkError if
        it is broken, by whatever happened since; it is good for `abort` only then."""
        state = c_int(IN_PROGRESS)
        with self._lock:
            self._check()
            self._nccl.call("ncclCommGetAsyncError", self._handle, byref(state))
        if state.value not in (SUCCESS, IN_PROGRESS):
            raise LinkError(self._nccl.text("communicator", state.value))
        return state.value == SUCCESS

    def send(self, addresses: Sequence[int], num_bytes: int, stream: int) -> None:
        """Queue so many bytes from each address, as one group, when ready. Raises LinkError."""
        self._post("ncclSend", addresses, num_bytes, stream)

    def receive(self, addresses: Sequence[int], num_bytes: int, stream: int) -> None:
        """Queue the counterpart of a `send`: as many, as long, in its order. Raises LinkError."""
        self._post("ncclRecv", addresses, num_bytes, stream)

    def abort(self) -> None:
        """End what runs on the device, and give all back. Waits for the device; once. Never raises.

        Where it lay is at rest only when the stream is synchronised after this.
        """
        with self._lock:
            if self._is_aborted:
                return
            self._is_aborted = True
            code = self._nccl.code("ncclCommAbort", self._handle)
        if code not in (SUCCESS, IN_PROGRESS):
            log.error(
                "%s: memory of a communicator is lost", self._nccl.text("ncclCommAbort", code)
            )

    def _post(self, name: str, addresses: Sequence[int], num_bytes: int, stream: int) -> None:
        rest = (num_bytes, _UINT8, self._peer, self._handle, stream)
        with self._lock:
            self._check()
            self._nccl.call("ncclGroupStart")
            try:
                for address in addresses:
                    self._nccl.call(name, address, *rest)
            finally:
                # Always: a group that is left open stays open in this thread, and takes abort in.
                code = self._nccl.code("ncclGroupEnd")
        if code not in (SUCCESS, IN_PROGRESS):
            raise LinkError(self._nccl.text("ncclGroupEnd", code))

    def _check(self) -> None:
        if self._is_aborted:
            raise LinkError("the communicator is aborted")


def version_text(version: int) -> str:
    """22809 is 2.28.9."""
    return f"{version // 10_000}.{version // 100 % 100}.{version % 100}"


def address_of(unique_id: bytes) -> tuple[str, int] | None:
    """Where the library listens for the ranks of an id: a sockaddr behind 8 bytes; None: who knows.

    Private to the library, so nothing depends on it but what `retire` tidies up.
    """
    (family,) = struct.unpack_from("=H", unique_id, 8)
    (port,) = struct.unpack_from("!H", unique_id, 10)
    if family == socket.AF_INET:
        return socket.inet_ntop(family, unique_id[12:16]), port
    if family == socket.AF_INET6:
        return socket.inet_ntop(family, unique_id[16:32]), port
    return None
