"""Every program of the client's guide runs as it stands."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support import sources
from tests.support.documents import blocks
from tests.support.server import Server

PROGRAMS = [b.text for b in blocks(sources.text("docs/guides/sdk.md")) if b.language == "python"]
TIMEOUT_S = 50


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_the_program_runs_as_it_stands(mock: Server, number: int) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAMS[number]],
        env=os.environ | {"DOPD_ENDPOINT": mock.grpc},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    mock.wait_idle()


def test_the_guide_has_programs() -> None:
    assert len(PROGRAMS) >= 10
