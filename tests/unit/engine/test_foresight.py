"""What the log says of steps that were planned ahead."""

from __future__ import annotations

import logging

import pytest

from dopd.engine import foresight
from dopd.engine.foresight import Foresight


def test_the_log_says_how_many_of_the_last_steps_were_planned_ahead(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(foresight, "TELL_EVERY", 4)
    caplog.set_level(logging.INFO)
    counts = Foresight()
    for is_hit in (True, True, False, True, False, True, False, False, True):
        counts.count(is_hit=is_hit)
    assert caplog.messages == [
        "3 of the last 4 decode steps were planned ahead",
        "1 of the last 4 decode steps were planned ahead",
    ]
    assert (counts.hits, counts.misses) == (5, 4)
    assert foresight.of(object()) is None
