"""`/openapi.json` is true: schemathesis sends bodies of the page's schemas, and broken ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.server import Server, serve

HOOKS = "tests.support.schemathesis_hooks"
REPO = Path(__file__).resolve().parents[2]
SEED = 1
# Of each route: generated bodies, beside those at and beyond every bound of the page.
EXAMPLES_MAX = 25
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "missing_required_header",
    # Our own, in place of `positive_data_acceptance`.
    "refusals_of_valid_bodies_are_relations",
)
REQUEST_TIMEOUT_S = 60
# What an ordinary run generates at least; less means that schemathesis found nothing to test.
CASES_MIN = 400


def test_the_page_names_every_route(mock: Server) -> None:
    page = mock.get("/openapi.json").json()
    assert page["openapi"].startswith("3.1")
    for path, operations in page["paths"].items():
        (method,) = operations
        answer = mock.call(method.upper(), path.replace("{model}", mock.model), b"")
        assert answer.status not in {404, 405}, path


@pytest.fixture(scope="module")
def small() -> Iterator[Server]:
    """A context so short that no generated request keeps a busy machine for long."""
    with serve("--mock", "--max-model-len", "2048") as server:
        yield server


@pytest.mark.timeout(240)
def test_schemathesis_finds_nothing(
    small: Server, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    report = tmp_path / "report.json"
    config = tmp_path / "schemathesis.toml"
    config.write_text(f'hooks = "{HOOKS}"\n')
    words = ["--config-file", str(config), "run", f"{small.url}/openapi.json"]
    words += ["--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"]
    words += ["--seed", str(SEED), "--max-examples", str(EXAMPLES_MAX)]
    words += ["--generation-deterministic", "--continue-on-failure", "--no-color"]
    words += ["--request-timeout", str(REQUEST_TIMEOUT_S)]
    words += ["--report", "json", "--report-json-path", str(report)]
    ran = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *words],
        # It keeps a cache where it runs; the hooks are found on the path.
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=230,
        check=False,
    )
    assert report.exists(), ran.stdout + ran.stderr
    found = json.loads(report.read_text())
    cases = found["test_cases"]
    record_property("cases", cases["generated"])
    record_property("deviations", cases["unique_failures"])
    assert not found["failures"], ran.stdout
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert cases["generated"] >= CASES_MIN
    assert found["operations"]["tested"] == found["operations"]["total"]
