"""The exporter of spans holds nobody up."""

from __future__ import annotations

import threading

import pytest

from dopd.worker import spans


def test_a_collector_that_hangs_does_not_hold_the_end_of_a_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spans, "FLUSH_TIMEOUT_S", 0.01)
    made = spans.Spans("http://127.0.0.1:1", "worker", "mixed")
    released, ended = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        released.wait(20)
        ended.set()

    shutdown = made._provider.shutdown
    monkeypatch.setattr(made._provider, "force_flush", hang)
    monkeypatch.setattr(made._provider, "shutdown", hang)
    made.close()
    assert not ended.is_set()
    released.set()
    shutdown()
