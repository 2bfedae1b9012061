"""How much memory this process may have: the machine's, or what its control group allows of it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def machine_memory() -> int:
    """Bytes of memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cgroup_limit(own: Path = OWN_CGROUPS, mounted: Path = CGROUPS) -> int | None:
    """Least limit of the groups that this process is in, version 1 and 2; None: no limit.

    Each group above counts too. A container may see its own group as the root, under a path that is
    not there: the root is then read for it.
    """
    limits = []
    with contextlib.suppress(OSError):
        for line in own.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                root, name = mounted, "memory.max"
            elif "memory" in controllers.split(","):
                root, name = mounted / "memory", "memory.limit_in_bytes"
            else:
                continue
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                # "max" is no number, and no limit.
                with contextlib.suppress(OSError, ValueError):
                    limits.append(int((folder / name).read_text(encoding="ascii")))
                if folder == root:
                    break
    return min(limits, default=None)


def usable_memory() -> int:
    """Bytes that this process could have before it is ended for it."""
    limit = cgroup_limit()
    return machine_memory() if limit is None else min(machine_memory(), limit)
