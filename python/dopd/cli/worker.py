"""worker: the same as `python -m dopd.worker`."""

from __future__ import annotations

import argparse
from importlib import import_module


def run(argv: list[str]) -> int:
    """Run one worker in this process until it ends; returns its exit code."""
    code: int = import_module("dopd.worker.__main__").main(argv[1:])
    return code


def parser() -> argparse.ArgumentParser:
    """The options of `dopd worker`."""
    from dopd.worker import args

    return args.parser()
