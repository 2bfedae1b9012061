"""Traces: from files, from a line of words, from arrays; at another rate."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dopd.errors import DopdError
from dopd.sim import columns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dopd._router import SimTrace

SPECS = ("poisson", "gamma", "shift", "minutes")


class TraceError(DopdError):
    """A trace cannot be read or made; file, line, column, value and what was expected."""


class Trace:
    """Arrivals and lengths, by time. Never changes; `scaled` and `first` make another."""

    def __init__(self, raw: SimTrace) -> None:
        self.raw = raw

    @classmethod
    def of(
        cls,
        arrival_s: Iterable[float],
        prompt_tokens: Iterable[int],
        output_tokens: Iterable[int],
        *,
        tenant: Iterable[int] | None = None,
        priority: Iterable[int] | None = None,
        name: str = "arrays",
    ) -> Trace:
        """From columns of equal length: arrays of NumPy, lists, any buffer or sequence.

        arrival_s in seconds from 0, in any order; lengths in tokens, at least 1; a lower priority
        goes first. Raises TraceError.
        """
        from dopd._router import SimTrace

        try:
            return cls(
                SimTrace.of(
                    name,
                    columns.floats("arrival_s", arrival_s),
                    columns.integers("prompt_tokens", prompt_tokens),
                    columns.integers("output_tokens", output_tokens),
                    None if tenant is None else columns.integers("tenant", tenant),
                    None if priority is None else columns.integers("priority", priority),
                )
            )
        except (ValueError, TypeError) as error:
            raise TraceError(f"{name}: {error}") from error

    @property
    def name(self) -> str:
        """Where it comes from."""
        return self.raw.name

    @property
    def skipped_rows(self) -> int:
        """Rows of the file whose request had failed at the source."""
        return self.raw.skipped_rows

    def __len__(self) -> int:
        return len(self.raw)

    def __repr__(self) -> str:
        return f"<Trace {self.name}: {len(self)} requests>"

    def scaled(self, factor: float, *, seed: int = 1) -> Trace:
        """At `factor` times the rate on its own clock: drift keeps its speed.

        Every request comes so many times (fractions by chance), moved by up to 2 s, with the
        lengths of one of its 50 neighbours on either side. Raises TraceError.
        """
        try:
            return Trace(self.raw.scaled(factor, seed))
        except ValueError as error:
            raise TraceError(str(error)) from error

    def first(self, seconds: float) -> Trace:
        """What comes within the first `seconds`. Raises TraceError."""
        if not seconds >= 0:
            raise TraceError(f"the first {seconds} seconds: must be a number from 0")
        return Trace(self.raw.first_seconds(seconds))

    @property
    def arrival_s(self) -> NDArray[np.float64]:
        """Seconds since the start. Needs NumPy, as the others."""
        return self._column("arrival_us") / 1e6

    @property
    def prompt_tokens(self) -> NDArray[np.int64]:
        """Tokens of each prompt."""
        return self._column("prompt_tokens")

    @property
    def output_tokens(self) -> NDArray[np.int64]:
        """Tokens of each answer."""
        return self._column("output_tokens")

    @property
    def tenant(self) -> NDArray[np.int64]:
        """Client or tenant of each; 0: unknown."""
        return self._column("tenant")

    def _column(self, name: str) -> NDArray[np.int64]:
        return columns.numbers(dict(self.raw.columns())[name])


def load(source: str | Path, *, seed: int = 1) -> Trace:
    """A trace file, or what a line of words stands for.

    Files: CSV (Azure, ServeGen, BurstGPT) or JSON lines (Mooncake), plain or gzip. Lines:
    `poisson:rate=8,prompt=1024,output=128~0.7,seconds=600`, `gamma:cv=3,...`,
    `shift:a=FILE,b=FILE,rate=1`, `minutes:shape=FILE,...`. Raises TraceError.
    """
    text = str(source)
    kind, colon, _ = text.partition(":")
    if isinstance(source, str) and colon and kind in SPECS:
        return _made(text, seed)
    return _read(Path(source))


def _read(path: Path) -> Trace:
    from dopd._router import SimTrace

    try:
        return Trace(SimTrace.read(path.name, _bytes(path)))
    except ValueError as error:
        raise TraceError(str(error)) from error


def _made(spec: str, seed: int) -> Trace:
    from dopd._router import SimTrace

    try:
        a, b, shape = SimTrace.files(spec)
        return Trace(
            SimTrace.make(
                spec,
                seed,
                a=None if a is None else _read(Path(a)).raw,
                b=None if b is None else _read(Path(b)).raw,
                shape=None if shape is None else _bytes(Path(shape)),
            )
        )
    except ValueError as error:
        raise TraceError(f"{spec}: {error}") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        made = f"; a made trace begins with {', '.join(SPECS)}" if ":" in path.name else ""
        raise TraceError(f"trace {path} cannot be read: {reason}{made}") from error
