"""The Rust half of dopd (`router/python`): the router, and the cost model of mock workers."""

from collections.abc import Callable, Sequence
from typing import Final

__all__ = ["commands", "main", "step_time", "timings_json", "version"]

version: Final[str]

def commands() -> str:
    """The router's commands as JSON: name, help, flags, positionals, commands below it.

    A flag has long, short, value (None for a switch), help, words (if only those are allowed) and
    is_path.
    """

def main(
    argv: Sequence[str],
    *,
    worker_command: Sequence[str] | None = None,
    known_models: dict[str, str | None] | None = None,
    worker_table: Callable[[str], str] | None = None,
) -> int:
    """Run `dopd ARGV...` in this process; returns the exit code (0, 1, 2 or 130).

    worker_command: program and first arguments of a local worker.
    known_models: names that MODEL may have; the path, or None if it is not installed.
    worker_table: Python's half of the settings (`dopd.cli.worker_table.answer`).
    Handles SIGINT, SIGTERM and SIGHUP itself while it runs; never raises KeyboardInterrupt.
    """

def step_time(
    timings: str,
    prefill: Sequence[tuple[int, int]],
    decode_seqs: int,
    decode_context_sum: int,
) -> int:
    """Microseconds of one step.

    timings: `instant`, `h100-8b`, `h100-70b` or the path of a calibration (JSON).
    prefill: per prompt its new tokens and those computed before. decode_seqs sequences decode one
    token each and read decode_context_sum tokens of KV. Raises ValueError for unknown timings.
    """

def timings_json(name: str) -> str:
    """The calibration `name` as JSON, as a worker's hello carries it. Raises ValueError."""
