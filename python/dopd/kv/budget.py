"""How much memory a pool takes, and how many pages that is. Asked by `engine/load`."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from dopd.errors import ConfigError
from dopd.kv.layout import pages_for
from dopd.kv.machine import usable_memory
from dopd.kv.size import parse_memory

log = logging.getLogger(__name__)

DEFAULT_CPU_MEMORY = 512 << 20
MAX_MACHINE_SHARE = 0.9
MIN_PAGES = 2


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A GPU's memory in bytes at one moment, as one process on it sees it.

    name: the device's; total: all of it; free: what nobody holds; held: what this process holds,
        weights, workspaces and the driver's context; reserve: what its steps will take besides the
        pool, activations and graphs; share: of total, what this process may take for everything.
    """

    name: str
    total: int
    free: int
    held: int
    reserve: int
    share: float

    def most(self) -> int:
        """What the pool can have, whatever the share."""
        return max(0, self.free - self.reserve)

    def within_share(self) -> int:
        """What the pool may have. Raises ConfigError if share or device are used up without one."""
        allowed = int(self.total * self.share)
        room = allowed - self.held - self.reserve
        if room <= 0:
            raise ConfigError(
                f"gpu-memory-utilization {self.share:g} of the {_mib(self.total)} MiB of "
                f"{self.name} is {_mib(allowed)} MiB, but weights and workspaces hold "
                f"{_mib(self.held)} MiB and steps need {_mib(self.reserve)} MiB more; raise it, or "
                "serve fewer workers on this device or a smaller model"
            )
        if not self.most():
            raise ConfigError(
                f"{self.name} has {_mib(self.free)} MiB free of {_mib(self.total)} MiB, and steps "
                f"need {_mib(self.reserve)} MiB of them: other processes use it; end those, or "
                "take another device"
            )
        if room > self.most():
            log.warning(
                "%s has %d MiB free, fewer than gpu-memory-utilization %g leaves for KV (%d MiB): "
                "others use it, too",
                *(self.name, _mib(self.free), self.share, _mib(room)),
            )
        return min(room, self.most())


def memory_for(asked: str | None, device: DeviceMemory | None = None) -> int:
    """Bytes to spend on the pool: what was asked for, else a default that suits the device.

    device: None for a CPU. Called when the weights are loaded. Raises ConfigError if more was asked
    for than the device can give.
    """
    if device is None:
        most, name = int(usable_memory() * MAX_MACHINE_SHARE), "cpu"
    else:
        most, name = device.most(), device.name
    if asked is None:
        return min(DEFAULT_CPU_MEMORY, most) if device is None else device.within_share()
    num_bytes = parse_memory(asked)
    if num_bytes > most:
        raise ConfigError(
            f"kv-memory {asked} is more than the {_mib(most)} MiB that {name} can give"
        )
    return num_bytes


def pages_in(memory_bytes: int, page_bytes: int, page_size: int, max_model_len: int) -> int:
    """Pages that fit in the memory. Raises ConfigError if the longest sequence would not."""
    num_pages = memory_bytes // page_bytes
    needed = max(MIN_PAGES, pages_for(max_model_len, page_size))
    if num_pages < needed:
        raise ConfigError(
            f"kv-memory of {_mib(memory_bytes)} MiB holds {num_pages * page_size} tokens, fewer "
            f"than one sequence of max-model-len {max_model_len}; give at least "
            f"{-(-needed * page_bytes >> 20)} MiB or lower max-model-len"
        )
    return num_pages


def _mib(num_bytes: int) -> int:
    return num_bytes >> 20
