"""Functions, files and lines stay small enough to be read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.support import sources

FUNCTION_LINES_MAX = 70
# A test may be a table of cases.
TEST_FUNCTION_LINES_MAX = 90
FILE_LINES_MAX = 400
TEST_FILE_LINES_MAX = 500
LINE_CHARS_MAX = 100
# Prose wraps where the editor wraps it.
PROSE = (".md",)
RUST_FUNCTION = re.compile(
    r"^(?P<indent> *)(?:pub(?:\([^)]*\))? )?(?:const |async |unsafe )*fn (?P<name>\w+)"
)


def test_files_are_short() -> None:
    long = []
    for name in sources.with_suffix(".py", ".rs", ".pyi", ".proto"):
        lines = sources.text(name).count("\n")
        limit = TEST_FILE_LINES_MAX if sources.is_test(name) else FILE_LINES_MAX
        if lines > limit:
            long.append(f"{name}: {lines} lines, at most {limit}")
    assert not long, "\n".join(long)


def test_lines_are_short() -> None:
    long = [
        f"{name}:{number}: {len(line)} characters"
        for name in sources.with_suffix(".py", ".rs", ".pyi", "Makefile")
        for number, line in enumerate(sources.text(name).splitlines(), 1)
        if len(line) > LINE_CHARS_MAX and "http" not in line and not is_expected_text(name, line)
    ]
    assert not long, "\n".join(long)


def is_expected_text(name: str, line: str) -> bool:
    """A Rust test's literal: rustfmt leaves it whole, and whole it can be compared with a log."""
    is_rust_test = name.endswith(".rs") and sources.is_test(name)
    return is_rust_test and not line.lstrip().startswith("//")


def test_functions_are_short() -> None:
    long = []
    for name in sources.with_suffix(".py", ".rs"):
        limit = TEST_FUNCTION_LINES_MAX if sources.is_test(name) else FUNCTION_LINES_MAX
        long += [
            f"{name}:{line}: {function} has {length} lines, at most {limit}"
            for function, line, length in functions(name)
            if length > limit
        ]
    assert not long, "\n".join(long)


def functions(name: str) -> Iterator[tuple[str, int, int]]:
    """(function, first line, number of lines) of every function in the file."""
    if name.endswith(".rs"):
        yield from rust_functions(sources.text(name).splitlines())
        return
    for node in ast.walk(ast.parse(sources.text(name))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1


def rust_functions(lines: list[str]) -> Iterator[tuple[str, int, int]]:
    """As `functions`; rustfmt puts a function's last brace below the start of its first line."""
    for first, line in enumerate(lines):
        found = RUST_FUNCTION.match(line)
        if found is None or line.endswith((";", "}")):
            continue
        end = found["indent"] + "}"
        rest = enumerate(lines[first:], first)
        last = next((n for n, other in rest if other == end), first)
        yield found["name"], first + 1, last - first + 1


def test_the_measure_of_rust_functions_is_right() -> None:
    lines = ["impl A {", "    pub(crate) async fn f(", "    ) {", "        g();", "    }", "}"]
    assert list(rust_functions(lines)) == [("f", 2, 4)]
