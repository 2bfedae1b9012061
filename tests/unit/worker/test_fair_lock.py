"""The desk's lock: no thread starves behind a busy step loop."""

from __future__ import annotations

import threading

from dopd.worker.fair_lock import FairLock

WAIT_S = 10


def test_who_waits_has_the_lock_before_who_released_it() -> None:
    lock, order = FairLock(), []

    def wait() -> None:
        with lock:
            order.append("waiter")

    for _ in range(100):
        lock.acquire()
        waiter = threading.Thread(target=wait)
        waiter.start()
        while not lock.has_waiter():
            pass
        lock.release()
        with lock:
            order.append("first holder")
        waiter.join(WAIT_S)
    assert order == 100 * ["waiter", "first holder"]


def test_a_condition_works_over_it() -> None:
    changed = threading.Condition(FairLock())
    seen: list[int] = []

    def produce() -> None:
        for number in range(100):
            with changed:
                seen.append(number)
                changed.notify_all()

    thread = threading.Thread(target=produce)
    thread.start()
    with changed:
        assert changed.wait_for(lambda: len(seen) == 100, WAIT_S)
    thread.join(WAIT_S)


def test_taking_it_without_waiting() -> None:
    lock = FairLock()
    assert lock.acquire(blocking=False)
    assert not lock.acquire(blocking=False)
    lock.release()
    assert lock.acquire()
