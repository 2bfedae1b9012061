"""A mutex that goes to who waits for it, not to who has just released it. Used by the desk alone.

The step loop releases the desk's lock for the length of an engine step. With a small or mocked
model that is microseconds, less than another thread needs to wake up: with an ordinary lock the
step loop has it again before, and a link thread or a drain may wait for seconds.
"""

from __future__ import annotations

import threading


class FairLock:
    """Not reentrant. Fit for `threading.Condition`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Held while waiting for the lock: who comes later waits here.
        self._gate = threading.Lock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; without `blocking` only if it is free.

        timeout: seconds to wait for those before us, and as many for who holds it; -1: no limit.
        """
        if not blocking:
            return self._lock.acquire(blocking=False)
        if not self._gate.acquire(timeout=timeout):
            return False
        try:
            return self._lock.acquire(timeout=timeout)
        finally:
            self._gate.release()

    def release(self) -> None:
        """Give the lock to who waits."""
        self._lock.release()

    def has_waiter(self) -> bool:
        """Whether a thread waits for the lock now."""
        return self._gate.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
