"""Row C5: packets get lost between router and workers, and between workers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.support import sources
from tests.support.faults.watch import record

TIMEOUT_S = 150
# In a namespace of its own, so that no device is added to anybody's network.
UNSHARE = ["unshare", "-rn"]
CAN_TUN = "import os, fcntl, struct; f = os.open('/dev/net/tun', os.O_RDWR); \
fcntl.ioctl(f, 0x400454CA, struct.pack('16sH22x', b'try', 0x1001))"


def why_not() -> str | None:
    """Why this machine cannot have a device that loses packets."""
    if shutil.which("unshare") is None:
        return "no unshare"
    tried = subprocess.run(
        [*UNSHARE, sys.executable, "-c", CAN_TUN], capture_output=True, text=True, check=False
    )
    return None if tried.returncode == 0 else f"no TUN device: {tried.stderr.strip()[-100:]}"


@pytest.mark.timeout(TIMEOUT_S + 30)
def test_c5_lost_packets_cost_time_and_no_answer() -> None:
    if reason := why_not():
        pytest.skip(reason)
    done = subprocess.run(
        [*UNSHARE, sys.executable, "-m", "tests.support.faults.lossy"],
        cwd=sources.REPO,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=os.environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    none, one_percent, five_percent = map(json.loads, done.stdout.splitlines())
    for found in (none, one_percent, five_percent):
        record("C5", **found)
        assert not found["failed"]
        assert found["handoffs"] > 0
    assert five_percent["dropped"] > one_percent["dropped"] > 0 == none["dropped"]
    # 0.8 is what is aimed for; a machine with other work takes its part of both.
    assert one_percent["tokens_per_s"] > 0.5 * none["tokens_per_s"]
