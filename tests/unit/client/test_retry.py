"""When a request is sent again, on a clock of the test's own."""

from __future__ import annotations

import pytest

import dopd
from dopd.client import retry


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def attempts(
    clock: Clock, budget: retry.RetryBudget | None = None, timeout_s: float = 600
) -> retry.Attempts:
    return retry.Attempts(
        budget or retry.RetryBudget(clock), timeout_s, clock=clock, draw=lambda low, high: high
    )


def unavailable(retry_after_s: float | None = None) -> dopd.RequestError:
    return dopd.UnavailableError("m", status="UNAVAILABLE", retry_after_s=retry_after_s)


def test_three_attempts_with_jitter_between() -> None:
    run = attempts(Clock())
    assert run.delay_after(unavailable(), has_begun=False) == retry.BACKOFF_MAX_S
    assert run.delay_after(unavailable(), has_begun=False) == retry.BACKOFF_MAX_S
    with pytest.raises(dopd.UnavailableError) as caught:
        run.delay_after(unavailable(), has_begun=False)
    assert caught.value.attempts == 3


def test_jitter_lies_between_25_and_250_ms() -> None:
    clock = Clock()
    for _ in range(100):
        run = retry.Attempts(retry.RetryBudget(clock), 600, clock=clock)
        assert 0.025 <= run.delay_after(unavailable(), has_begun=False) <= 0.250


def test_never_after_the_first_token() -> None:
    with pytest.raises(dopd.UnavailableError):
        attempts(Clock()).delay_after(unavailable(), has_begun=True)


@pytest.mark.parametrize(
    ("status", "retry_after_s", "is_sent_again"),
    [
        ("UNAVAILABLE", None, True),
        ("UNAVAILABLE", 1.0, True),
        ("RESOURCE_EXHAUSTED", 1.0, True),
        # A limit on the content: the same content will meet it again.
        ("RESOURCE_EXHAUSTED", None, False),
        ("INTERNAL", 1.0, False),
        ("INVALID_ARGUMENT", 1.0, False),
        ("DEADLINE_EXCEEDED", None, False),
        ("ABORTED", None, False),
        ("CANCELLED", None, False),
    ],
)
def test_only_where_the_server_allows_it(
    status: str, retry_after_s: float | None, is_sent_again: bool
) -> None:
    error = dopd.RequestError("m", status=status, retry_after_s=retry_after_s)
    run = attempts(Clock())
    if is_sent_again:
        assert run.delay_after(error, has_begun=False) > (retry_after_s or 0)
    else:
        with pytest.raises(dopd.RequestError):
            run.delay_after(error, has_begun=False)


def test_the_deadline_covers_all_attempts() -> None:
    clock = Clock()
    run = attempts(clock, timeout_s=1.0)
    clock.now += 0.7
    run.delay_after(unavailable(), has_begun=False)
    assert run.remaining_s() == pytest.approx(0.3)
    clock.now += 0.1
    with pytest.raises(dopd.UnavailableError):
        run.delay_after(unavailable(), has_begun=False)
    clock.now += 5
    assert run.remaining_s() == 0.0


@pytest.mark.parametrize("retry_after_s", [601.0, retry.PUSHBACK_MAX_S + 1])
def test_a_pushback_past_deadline_or_limit_is_told_at_once(retry_after_s: float) -> None:
    with pytest.raises(dopd.UnavailableError) as caught:
        attempts(Clock()).delay_after(unavailable(retry_after_s), has_begun=False)
    assert caught.value.retry_after_s == retry_after_s


def spend(budget: retry.RetryBudget) -> int:
    taken = 0
    while budget.take_retry():
        taken += 1
    return taken


def test_the_budget_is_a_fifth_of_the_requests_but_always_three() -> None:
    clock = Clock()
    budget = retry.RetryBudget(clock)
    assert spend(budget) == 3
    for _ in range(100):
        budget.count_request()
    assert spend(budget) == 17
    clock.now += retry.WINDOW_S
    assert spend(budget) == 3


def test_an_outage_is_not_multiplied() -> None:
    clock = Clock()
    budget = retry.RetryBudget(clock)
    sent = 0
    for _ in range(1000):
        run = attempts(clock, budget)
        sent += 1
        with pytest.raises(dopd.UnavailableError):
            while True:
                run.delay_after(unavailable(), has_begun=False)
                sent += 1
    assert sent <= 1203


def test_a_budget_remembers_no_more_than_its_window() -> None:
    clock = Clock()
    budget = retry.RetryBudget(clock)
    for _ in range(10 * retry.WINDOW_S):
        budget.count_request()
        clock.now += 0.5
    assert len(budget._seconds) <= retry.WINDOW_S
