"""Row E8 of the matrix: work for requests whose time is over."""

from __future__ import annotations

from pathlib import Path

from tests.faults.test_load import CAPACITY, counts, overload, small_fleet
from tests.support.faults.load import FAILED, OK, REFUSED


def test_e8_nothing_is_computed_for_requests_that_cannot_be_in_time(tmp_path: Path) -> None:
    """At three times the load, with a deadline and a queue that could hold them all."""
    limits = "request_timeout_ms = 1500\nno_worker_wait_ms = 500\nslow_reader_timeout_ms = 1500\n"
    with small_fleet(tmp_path, f"[limits]\n{limits}") as one:
        seconds = 8
        outcomes = overload(one, 3, seconds)
        found = counts(outcomes)
        assert not found.keys() - {(OK, ""), (FAILED, "deadline_exceeded"), (REFUSED, "queue_full")}
        cut = [o for o in outcomes if o.why != OK and o.text]
        # What the fleet is busy with ends in time, as a rule.
        assert found[OK, ""] >= CAPACITY * seconds / 2, found
        assert len(cut) <= found[OK, ""] / 5, (len(cut), found)
        one.settled()
