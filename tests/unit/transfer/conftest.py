"""Limits that a test can wait for, and an eye on threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from dopd.transfer import nccl_link, rest
from tests.support.links import wait_for

# Shorter than JOIN_S and its like, longer than anything takes that goes well.
SHORT_S = 0.5


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test can wait for."""
    for name in ("JOIN_S", "WRITE_S", "ABORT_S"):
        monkeypatch.setattr(nccl_link, name, SHORT_S)
    monkeypatch.setattr(rest, "REST_S", SHORT_S)
    monkeypatch.setattr(nccl_link, "WATCH_S", 0.05)


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    wait_for(lambda: threading.active_count() <= before, threading.enumerate)
