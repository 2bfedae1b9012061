"""Prometheus' own checker, where it is installed."""

from __future__ import annotations

import os
import shutil

import pytest


def promtool() -> str:
    """Its path: $PROMTOOL or on PATH; without it the test is skipped."""
    found = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool on PATH (Debian: apt-get install prometheus) and no PROMTOOL")
    return found
