"""Clients for all cases, listed deviations, and how many cases ran."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import conformance
from tests.support.server import Server


@pytest.fixture(scope="session")
def clients(mock: Server) -> Iterator[conformance.Clients]:
    """Both clients of the shared mock server."""
    yield from conformance.clients(mock)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Listed deviations must fail."""
    here = [item for item in items if "tests/conformance" in item.nodeid]
    conformance.mark_deviations(here)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """`conformance: 412 cases, 0 deviate`."""
    stats = terminalreporter.stats
    ran = [
        report
        for name in ("passed", "failed", "xfailed")
        for report in stats.get(name, [])
        if "tests/conformance" in report.nodeid
    ]
    if ran:
        deviate = sum(report.outcome != "passed" for report in ran)
        terminalreporter.write_line(f"conformance: {len(ran)} cases, {deviate} deviate")
