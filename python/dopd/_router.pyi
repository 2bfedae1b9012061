"""The Rust half of dopd (`router/python`): router, cost model of mock workers, simulator."""

from array import array
from collections.abc import Callable, Sequence
from typing import Final

__all__ = [
    "RawBrain",
    "SimRun",
    "SimTrace",
    "commands",
    "main",
    "sim_kinds",
    "sim_policies",
    "sim_prefill",
    "sim_scenario",
    "simulate",
    "step_time",
    "timings_json",
    "version",
]

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
    gpus: Callable[[], int] | None = None,
) -> int:
    """Run `dopd ARGV...` in this process; returns the exit code (0, 1, 2 or 130).

    worker_command: program and first arguments of a local worker.
    known_models: names that MODEL may have; the path, or None if it is not installed.
    worker_table: Python's half of the settings (`dopd.cli.worker_table.answer`).
    gpus: how many GPUs local workers find, if a real model is served.
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

class SimTrace:
    """Arrivals and lengths; never changes. Everything raises ValueError for what is no trace."""

    @staticmethod
    def read(name: str, data: bytes) -> SimTrace: ...
    @staticmethod
    def files(spec: str) -> tuple[str | None, str | None, str | None]:
        """Files that `spec` names: of lengths (or the first of a shift), its second, a shape."""

    @staticmethod
    def make(
        spec: str,
        seed: int,
        *,
        a: SimTrace | None = None,
        b: SimTrace | None = None,
        shape: bytes | None = None,
    ) -> SimTrace: ...
    @staticmethod
    def of(
        name: str,
        arrival_s: array[float],
        prompt_tokens: array[int],
        output_tokens: array[int],
        tenant: array[int] | None = None,
        priority: array[int] | None = None,
    ) -> SimTrace: ...
    @property
    def name(self) -> str: ...
    @property
    def skipped_rows(self) -> int: ...
    def __len__(self) -> int: ...
    def scaled(self, factor: float, seed: int) -> SimTrace: ...
    def first_seconds(self, seconds: float) -> SimTrace: ...
    def with_keys(self, keys: array[int]) -> SimTrace:
        """The same requests with keys of order in microseconds, one each."""

    def columns(self) -> list[tuple[str, bytes]]:
        """Little-endian 64-bit integers, one column after the other."""

class SimRun:
    """What came of a run."""

    @property
    def wall_s(self) -> float: ...
    @property
    def events(self) -> int: ...
    def figures(self) -> str:
        """`dopd_sim::report::Figures` as JSON."""

    def columns(self) -> list[tuple[str, bytes]]:
        """Per request; -1 for no such moment."""

def simulate(
    trace: SimTrace, setup: str, progress: Callable[[int, int], None] | None = None
) -> SimRun:
    """Run `trace`; setup: `dopd_sim::setup::Setup` as JSON. Raises ValueError."""

def sim_policies() -> list[tuple[str, str]]:
    """Name and help of every policy."""

def sim_kinds() -> list[tuple[str, str, tuple[float, float]]]:
    """Device, model and timings of every built-in calibration."""

def sim_scenario(setup: str) -> str:
    """What a setup comes to in full, as JSON: brain, fleet, slo."""

def sim_prefill(setup: str, prompt_tokens: Sequence[int]) -> list[float]:
    """Seconds of unloaded prefills of so many tokens, on the workers of a setup."""

class RawBrain:
    """The scheduler that serves, driven by hand. JSON in, JSON out."""

    def __init__(self, config: str) -> None: ...
    def handle(self, now_us: int, event: str) -> str: ...
    def next_wake(self) -> int | None: ...
    @staticmethod
    def settings(config: str) -> str: ...
