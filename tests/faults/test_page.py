"""docs/concepts/faults.md tells of the tests that there are, and of no others."""

from __future__ import annotations

import ast
import re

from tests.support import sources

PAGE = "docs/concepts/faults.md"
ROW = re.compile(r"^\| ((?:[A-K]\d+(?:, )?)+) \| (.*)$", re.MULTILINE)
TEST_OF_ROW = re.compile(r"test_((?:[a-k]\d+_)+)")
NAMED = re.compile(r"`(tests/\S+\.py)::(\w+)`")


def defined(name: str) -> set[str]:
    """Functions, classes and other names of the top level of a file."""
    found = set()
    for node in ast.parse(sources.text(name)).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def rows_with_tests() -> dict[str, str]:
    """Row -> a test of it in tests/faults."""
    rows = {}
    for name in sources.with_suffix(".py"):
        if name.startswith("tests/faults/"):
            for test in defined(name):
                if found := TEST_OF_ROW.match(test):
                    rows |= dict.fromkeys(found[1].upper().strip("_").split("_"), test)
    return rows


def test_every_row_of_the_page_has_a_test_and_every_test_a_row() -> None:
    told = {}
    for rows, text in ROW.findall(sources.text(PAGE)):
        told |= dict.fromkeys(rows.split(", "), text)
    tested = rows_with_tests()
    elsewhere = {row for row, text in told.items() if NAMED.search(text)}
    assert not told.keys() - tested.keys() - elsewhere, "rows that no test proves"
    assert not tested.keys() - told.keys(), "tests whose row the page does not have"


def test_every_test_that_the_page_names_exists() -> None:
    named = NAMED.findall(sources.text(PAGE))
    assert named
    missing = [f"{file}::{test}" for file, test in named if test not in defined(file)]
    assert not missing
