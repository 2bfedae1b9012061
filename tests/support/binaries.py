"""The cargo binaries that tests start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.sources import REPO


def binary(name: str) -> Path:
    """The newest build of `name`; skips the test if there is none."""
    target = Path(os.environ.get("CARGO_TARGET_DIR") or REPO / "target")
    found = [target / profile / name for profile in ("release", "local", "debug")]
    built = [path for path in found if path.is_file()]
    if not built:
        pytest.skip(f"{name} is not built; make build")
    return max(built, key=lambda path: path.stat().st_mtime)
