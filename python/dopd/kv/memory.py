"""The memory under a pool on the CPU: a sealed memory file, which other processes may be let read.

The seals forbid everybody, us included, to resize the file and to write it other than through the
mapping made before: who is handed the descriptor can read the pages and do nothing else. The system
backs each page of it when it is first written, and frees it with the last process that holds it;
it has no name that could be left behind.
"""

from __future__ import annotations

import fcntl
import logging
import os
import weakref
from mmap import mmap

log = logging.getLogger(__name__)

# linux/fcntl.h; Python's module has it from 3.13 on.
F_SEAL_FUTURE_WRITE = 0x10
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL
# linux/memfd.h; never executable. Kernels before 6.3 do not know it, hardened ones demand it.
_MFD_NOEXEC_SEAL = 0x8


class PoolMemory:
    """Zeroed bytes. buffer: all of them, writable.

    descriptor: the sealed file, closed with this object; None where the system gives none, and
    then the memory is this process's alone.
    """

    def __init__(self, num_bytes: int) -> None:
        """num_bytes: above 0."""
        self.descriptor: int | None = None
        try:
            descriptor = _memory_file()
        except OSError as error:
            log.info("no memory file here, so no shm transport: %s", error)
            self.buffer = mmap(-1, num_bytes)
            return
        close = weakref.finalize(self, os.close, descriptor)
        os.ftruncate(descriptor, num_bytes)
        self.buffer = mmap(descriptor, num_bytes)
        try:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
        except OSError as error:
            log.info("memory file cannot be sealed, so no shm transport: %s", error)
            close()
            return
        self.descriptor = descriptor


def _memory_file() -> int:
    """A new empty file in memory that can be sealed. Raises OSError."""
    try:
        return os.memfd_create("dopd-kv", os.MFD_CLOEXEC | _MFD_NOEXEC_SEAL)
    except OSError:
        return os.memfd_create("dopd-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
