"""A test that pytest does not collect is not a test."""

from __future__ import annotations

import ast
from pathlib import PurePath

from tests.support import sources

# Files below tests/ that hold no tests, by name or by folder.
HELPERS = ("conftest.py", "__init__.py")
HELPER_FOLDERS = ("tests/support/",)


def test_every_file_below_tests_defines_a_test() -> None:
    idle = [
        name
        for name in sources.with_suffix(".py")
        if name.startswith("tests/")
        and not name.startswith(HELPER_FOLDERS)
        and PurePath(name).name not in HELPERS
        and not (PurePath(name).name.startswith("test_") and collected_in(name))
    ]
    assert not idle, f"not collected: {idle}"


def collected_in(name: str) -> list[str]:
    """Names of functions that pytest collects, state machines of hypothesis included."""
    return [
        node.name
        for node in ast.walk(ast.parse(sources.text(name)))
        if (isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))
        or (isinstance(node, ast.ClassDef) and node.name.startswith("Test"))
    ] + [
        target.id
        for node in ast.walk(ast.parse(sources.text(name)))
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.startswith("Test")
    ]
