"""Whether and when a request is sent again.

Only before its first token, only where the server cannot have answered it or asks for it, never
past its deadline, and only as long as the budget of the whole client lasts: retries must not keep
an overloaded server down.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from dopd.client.errors import RequestError

Clock = Callable[[], float]

ATTEMPTS_MAX = 3
# Full jitter.
BACKOFF_MIN_S = 0.025
BACKOFF_MAX_S = 0.250
# A server that wants to be left alone for longer gets its wish: the caller is told.
PUSHBACK_MAX_S = 30.0
# Retries may be this share of the requests of the last WINDOW_S seconds, but always RETRIES_MIN.
RETRIES_SHARE = 0.2
RETRIES_MIN = 3
WINDOW_S = 10


@dataclass
class Second:
    """What happened in one second."""

    at: int
    requests: int = 0
    retries: int = 0


class RetryBudget:
    """Counts requests and retries of one client. Any thread may call it."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: deque[Second] = deque(maxlen=WINDOW_S)

    def count_request(self) -> None:
        """A request begins."""
        with self._lock:
            self._now().requests += 1

    def take_retry(self) -> bool:
        """Whether one more retry is within the budget; if so, it counts."""
        with self._lock:
            now = self._now()
            requests = sum(second.requests for second in self._seconds)
            retries = sum(second.retries for second in self._seconds)
            if retries >= max(RETRIES_MIN, RETRIES_SHARE * requests):
                return False
            now.retries += 1
            return True

    def _now(self) -> Second:
        """This second's counts, with those that left the window forgotten."""
        at = int(self._clock())
        while self._seconds and self._seconds[0].at <= at - WINDOW_S:
            self._seconds.popleft()
        if not self._seconds or self._seconds[-1].at != at:
            self._seconds.append(Second(at))
        return self._seconds[-1]


class Attempts:
    """The attempts of one request.

    timeout_s: for all of them together.
    """

    def __init__(
        self,
        budget: RetryBudget,
        timeout_s: float,
        *,
        clock: Clock = time.monotonic,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.timeout_s = timeout_s
        self._budget = budget
        self._clock = clock
        self._draw = draw
        self._deadline = clock() + timeout_s
        self._count = 1
        budget.count_request()

    def remaining_s(self) -> float:
        """Time left for this attempt; 0 if there is none."""
        return max(0.0, self._deadline - self._clock())

    def delay_after(self, error: RequestError, *, has_begun: bool) -> float:
        """Seconds to wait before the next attempt; raises `error` if there is none.

        has_begun: the caller has seen part of the answer.
        """
        error.attempts = self._count
        if has_begun or self._count >= ATTEMPTS_MAX or not _is_safe(error):
            raise error
        delay_s = self._draw(BACKOFF_MIN_S, BACKOFF_MAX_S)
        if error.retry_after_s is not None:
            delay_s += error.retry_after_s
        is_too_late = delay_s >= self.remaining_s() or delay_s > PUSHBACK_MAX_S
        if is_too_late or not self._budget.take_retry():
            raise error
        self._count += 1
        return delay_s


def _is_safe(error: RequestError) -> bool:
    """Whether the server asks for a retry, or cannot serve at the moment at all.

    RESOURCE_EXHAUSTED alone may also be a limit on the content, which no retry will change.
    """
    if error.status == "UNAVAILABLE":
        return True
    return error.status == "RESOURCE_EXHAUSTED" and error.retry_after_s is not None
