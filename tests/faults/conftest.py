"""Fleets that fault tests share. Each test leaves its fleet healed: it ends with `settled`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.faults.fleet import Fleet, all_travels, fleet

# Many rounds take minutes; a hang is still found.
SOAK_TIMEOUT_S = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Soak tests that name no limit of their own get one that fits."""
    for item in items:
        if item.get_closest_marker("soak") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SOAK_TIMEOUT_S))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two prefill and two decode workers, pages over TCP, every page checked."""
    folder = tmp_path_factory.mktemp("pairs")
    with fleet(folder, "--kv-check", "full") as one:
        yield one


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One prefill and one decode worker; every page travels, over TCP, and is checked."""
    folder = tmp_path_factory.mktemp("pair")
    words = (*all_travels(folder), "--kv-check", "full")
    with fleet(folder, *words, prefill=1, decode=1) as one:
        yield one
