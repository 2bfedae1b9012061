"""What every command shares: how it speaks to the terminal, how it fails, its exit codes.

Answers go to stdout, everything about the run (errors, progress, hints) to stderr.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn, TextIO

from dopd import env
from dopd.errors import DopdError

if TYPE_CHECKING:
    import argparse

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


def set_up_streams() -> None:
    """Make all three usable: a closed one is empty, and what its encoding lacks is escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    for out in (sys.stdout, sys.stderr):
        if isinstance(out, io.TextIOWrapper):
            out.reconfigure(errors="backslashreplace")


def say(text: str = "") -> None:
    """One line of the answer."""
    stream(text + "\n")


def stream(text: str) -> None:
    """A piece of the answer, shown at once."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CommandError(f"the answer cannot be written to stdout: {reason}") from error


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


def has_colour(stream: TextIO) -> bool:
    """Whether colour, bars and redrawing suit `stream`: a terminal, and NO_COLOR is not set."""
    is_dumb = env.foreign("TERM") in (None, "dumb")
    return stream.isatty() and not is_dumb and env.foreign("NO_COLOR") is None


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """A parser for `dopd COMMAND`: raw epilog, no abbreviations, "did you mean" for flags."""
    import argparse

    class Parser(argparse.ArgumentParser):
        """Says which flag was meant."""

        def error(self, message: str) -> NoReturn:
            """Called by argparse."""
            self.exit(USAGE, f"error: {message}\n{suggestion(self, message)}")

    return Parser(
        prog=f"dopd {command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def suggestion(parser: argparse.ArgumentParser, message: str) -> str:
    """What helps after a usage error: the flag that was probably meant, or the help."""
    from difflib import get_close_matches

    flags = list(parser._option_string_actions)
    _, found, words = message.partition("unrecognized arguments: ")
    for word in words.split() if found else ():
        if close := get_close_matches(word.partition("=")[0], flags, n=1):
            return f"  fix: {close[0]}\n"
    return f"  fix: {parser.prog} --help\n"


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
