"""What every command shares: how it speaks to the terminal, how it fails, its exit codes.

Answers go to stdout, everything about the run (errors, progress, hints) to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dopd.errors import DopdError

OK = 0
FAILED = 1
USAGE = 2
UNHEALTHY = 3
INTERRUPTED = 130


class CommandError(DopdError):
    """A command cannot go on: what happened and where; `fix` is the command that helps."""

    def __init__(self, message: str, *, fix: str | None = None, code: int = FAILED) -> None:
        super().__init__(message)
        self.fix = fix
        self.code = code


def say(text: str = "") -> None:
    """One line of the answer."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def stream(text: str) -> None:
    """A piece of the answer, shown at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def note(text: str) -> None:
    """One line about the run."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def fail(error: DopdError) -> int:
    """Show `error` and return its exit code."""
    note(f"error: {error}")
    if not isinstance(error, CommandError):
        return FAILED
    if error.fix:
        note(f"  fix: {error.fix}")
    return error.code


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int]) -> str:
    """Columns two spaces apart; those whose index is in `right` are aligned to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return "\n".join(line(cells) for cells in [header, *rows])
