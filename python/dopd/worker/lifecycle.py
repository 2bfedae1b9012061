"""Signals and standard input of a worker process."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType

from dopd.worker.desk import Desk

log = logging.getLogger(__name__)

# Python lets a computing thread keep the interpreter for 5 ms before another may have it. Link
# threads need it for microseconds at a time, and a hand-off waits for them.
SWITCH_INTERVAL_S = 0.0005


def ignore_interrupts() -> None:
    """Ctrl-C reaches the whole process group; the router decides what its workers do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def drain_on_terminate(desk: Desk) -> None:
    """SIGTERM: refuse new work, end when empty. A second one ends at once."""
    signals_seen = 0

    def on_terminate(signum: int, frame: FrameType | None) -> None:
        nonlocal signals_seen
        signals_seen += 1
        # The handler runs in the step loop's thread between two bytecodes, perhaps under the lock:
        # another thread must do the work.
        act = desk.drain if signals_seen == 1 else desk.stop
        threading.Thread(target=act, name="terminate", daemon=True).start()

    signal.signal(signal.SIGTERM, on_terminate)


def stop_on_stdin_eof(desk: Desk) -> None:
    """End with the process that holds the other end of our stdin, so that nothing outlives it."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        log.info("stdin is closed: ending")
        desk.stop()

    threading.Thread(target=wait, name="stdin", daemon=True).start()
