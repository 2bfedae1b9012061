"""Fixtures that several folders use."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture.providers import Constants, HypothesisProvider

from tests.support import cases
from tests.support.server import Server, serve
from tests.support.smollm2 import require as require_smollm2

cases.register()


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """Same cases every time: see `test_cases_do_not_depend_on_what_is_loaded`."""
    if settings().derandomize:
        # One draw of twenty is a constant from a module of ours that happens to be loaded.
        HypothesisProvider._local_constants = Constants()


@pytest.fixture(scope="session")
def mock() -> Iterator[Server]:
    """One mock server, a prefill and a decode worker; tests leave it as it was."""
    with serve("--mock") as server:
        yield server


@pytest.fixture(scope="session")
def smollm2() -> Iterator[Server]:
    """SmolLM2 in float32 on one prefill and one decode worker."""
    require_smollm2()
    with serve("smollm2", "--dtype", "float32") as server:
        yield server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need a GPU are skipped where there is none."""
    if shutil.which("nvidia-smi"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
