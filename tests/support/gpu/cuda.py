"""libcuda's double, compiled and loaded: `StubCuda`, one for each process that a test plays."""

from __future__ import annotations

import atexit
import ctypes
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from dopd.transfer.cuda import Device, Driver

SOURCE = Path(__file__).with_name("stub_cuda.c")
FLAGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-g", "-shared", "-fPIC", "-pthread")
FOLDER_VARIABLE = "STUB_CUDA_FOLDER"

_numbers = itertools.count()


@cache
def built(source: Path = SOURCE) -> Path:
    """A double, compiled once a process; those that it starts, which may be killed, use it."""
    variable = f"{source.stem.upper()}_BUILT"
    if told := os.environ.get(variable):
        return Path(told)
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip(f"no C compiler for {source.name}")
    folder = tempfile.mkdtemp(prefix="dopd-stub-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = Path(folder) / f"{source.stem}.so"
    subprocess.run([compiler, *FLAGS, "-o", library, source, "-ldl"], check=True)
    os.environ[variable] = str(library)
    return library


class StubCuda:
    """One loaded copy of the double: a process of its own to CUDA, with one device in use.

    folder: the device memory of all processes of the test; see `shared_folder`.
    """

    def __init__(self, folder: Path, ordinal: int = 0) -> None:
        self.path = folder / f"lib{os.getpid()}-{next(_numbers)}.so"
        # Another file is another library to the loader.
        shutil.copy(built(), self.path)
        os.environ[FOLDER_VARIABLE] = str(folder)
        self.driver = Driver.open(str(self.path))
        self.library = ctypes.CDLL(str(self.path))
        self.library.stub_peek.restype = ctypes.c_void_p
        self.library.stub_peek.argtypes = (ctypes.c_uint64,)
        for name in ("stub_live", "stub_calls"):
            getattr(self.library, name).restype = ctypes.c_long
        self.device: Device = self.driver.retain(ordinal)

    def allocate(self, num_bytes: int) -> int:
        """Device memory, as torch would take it: its address."""
        self.device.use()
        address = ctypes.c_uint64()
        code = self.library.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(num_bytes))
        assert code == 0, code
        return address.value

    def peek(self, address: int, num_bytes: int) -> memoryview:
        """Device memory as only a test sees it."""
        host = self.library.stub_peek(address)
        assert host, f"no device memory at {address:#x}"
        return memoryview((ctypes.c_char * num_bytes).from_address(host)).cast("B")

    def fail(self, name: str, nth: int = 1, code: int = 999) -> None:
        """The nth call of a function from now on fails, once."""
        self.library.stub_fail(name.encode(), ctypes.c_long(nth), code)

    def calls(self, name: str) -> int:
        """How often a function was called."""
        return int(self.library.stub_calls(name.encode()))

    def delay(self, seconds: float) -> None:
        """Each piece of a stream's work takes so long from now on."""
        self.library.stub_delay(ctypes.c_long(int(seconds * 1e6)))

    def hold(self, *, is_held: bool) -> None:
        """Streams begin nothing while they are held."""
        self.library.stub_hold(int(is_held))

    def has_peers(self, *, can_access: bool) -> None:
        """Whether devices reach each other's memory."""
        self.library.stub_peers(int(can_access))

    def live(self) -> dict[str, int]:
        """What was not given back."""
        names = ("streams", "events", "pinned", "imports", "queued")
        return {name: int(self.library.stub_live(name.encode())) for name in names}

    def check(self) -> None:
        """Nothing was done that a real device would not forgive."""
        text = ctypes.create_string_buffer(256)
        count = self.library.stub_violations(text, ctypes.c_size_t(len(text)))
        assert count == 0, f"{count} violations, the last one: {text.value.decode()}"

    def check_given_back(self) -> None:
        """Nothing is left of streams, events, buffers and handles, and nothing was done wrong."""
        self.check()
        assert not any(self.live().values()), self.live()


@contextmanager
def shared_folder() -> Iterator[Path]:
    """Where the device memory of a test lies, and its copies of the library."""
    with tempfile.TemporaryDirectory(prefix="dopd-stub-gpu-") as name:
        yield Path(name)
