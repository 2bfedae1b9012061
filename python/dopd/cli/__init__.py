"""The command `dopd`. This module imports almost nothing, so that `dopd --help` is quick."""

from __future__ import annotations


def main() -> int:
    """Run the command of sys.argv; returns the exit code. Entry point of the console script."""
    import sys

    from dopd.cli.app import run

    return run(sys.argv[1:])
