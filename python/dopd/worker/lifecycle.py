"""Signals and standard input of a worker process."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import NoReturn

from dopd.worker.desk import Desk

log = logging.getLogger(__name__)

# Python lets a computing thread keep the interpreter for 5 ms before another may have it. Link
# threads need it for microseconds at a time, and a hand-off waits for them.
SWITCH_INTERVAL_S = 0.0005
EXIT_FAILED = 1
# So long a step under way may take when the process is to end at once.
STOP_S = 0.8
# The router gives up on a silent or stuck worker after 3 s; this is about ending it.
STUCK_TICKS = 15
STUCK_STEPS = 20


def ignore_interrupts() -> None:
    """Ctrl-C reaches the whole process group; the router decides what its workers do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def drain_on_terminate(desk: Desk, drain_timeout_s: float) -> None:
    """SIGTERM: refuse new work, end when empty, or after drain_timeout_s: the router goes on with
    the rest elsewhere. A second one ends at once."""
    signals_seen = 0

    def drain() -> None:
        desk.drain()
        # A daemon: whoever is empty before does not wait for it.
        time.sleep(drain_timeout_s)
        log.warning("not empty %.0f s after SIGTERM: ending", drain_timeout_s)
        end(desk)

    def on_terminate(signum: int, frame: FrameType | None) -> None:
        nonlocal signals_seen
        signals_seen += 1
        # The handler runs in the step loop's thread between two bytecodes, perhaps under the lock:
        # another thread must do the work.
        act = drain if signals_seen == 1 else partial(end, desk)
        threading.Thread(target=act, name="terminate", daemon=True).start()

    signal.signal(signal.SIGTERM, on_terminate)


def stop_on_stdin_eof(desk: Desk) -> None:
    """End with the process that holds the other end of our stdin, so that nothing outlives it."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        log.info("stdin is closed: ending")
        end(desk)

    threading.Thread(target=wait, name="stdin", daemon=True).start()


def end(desk: Desk) -> None:
    """Stop the step loop; end the process if a step, or the lock, keeps it from stopping."""
    threading.Thread(target=desk.stop, name="stop", daemon=True).start()
    time.sleep(STOP_S)
    if not desk.is_left:
        log.error("a step did not end within %.1f s: leaving it", STOP_S)
        leave()


def end_if_stuck(desk: Desk) -> None:
    """Watch the step loop: one that does not turn any more computes for nobody, while our
    heartbeats go on. Then a new process is better, and our supervisor sees to that."""
    threading.Thread(target=watch, args=(desk, leave), name="watchdog", daemon=True).start()


def watch(desk: Desk, act: Callable[[], None], tick_s: float = 1.0) -> None:
    """Call `act` once the loop has not turned for STUCK_TICKS, or for as many times as long as the
    step under way was expected to take. Ticks are counted, not time: a process that was frozen as
    a whole has missed none. Without the desk's lock: it may be what is stuck."""
    turns, ticks = -1, 0
    # A loop that was drained has left without a stop, and what follows may take its time.
    while not (desk.is_stopped or desk.is_left):
        time.sleep(tick_s)
        ticks = ticks + 1 if desk.num_turns == turns else 0
        turns = desk.num_turns
        if ticks * tick_s > max(STUCK_TICKS * tick_s, STUCK_STEPS * desk.next_step_s):
            log.critical("the step loop has not moved for %.0f s: ending", ticks * tick_s)
            act()
            return


def leave() -> NoReturn:
    """End the process as a failed one, whatever its threads do."""
    logging.shutdown()
    os._exit(EXIT_FAILED)
