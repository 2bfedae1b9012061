"""One run: a trace on a fleet under a policy."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dopd.errors import DopdError
from dopd.sim import columns
from dopd.sim.pool import running
from dopd.sim.trace import Trace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dopd._router import SimRun


TTFT_PREFILL_RATIO = 3.0
"""No target for a first token is below so many unloaded prefills."""


class SimulationError(DopdError):
    """A run is not possible: an unknown policy, a number out of its limits."""


@dataclass(frozen=True, slots=True)
class Request:
    """What an ordering policy may know of a request: never the length of its answer."""

    arrival_s: float
    prompt_tokens: int
    prefill_s: float
    tenant: int
    priority: int


# (request, now in seconds) -> seconds; the lowest goes first.
Order = Callable[[Request, float], float]


class Result:
    """What came of a run. Times in seconds; NaN where there is no such moment."""

    def __init__(self, run: SimRun, setup: dict[str, Any]) -> None:
        self._run = run
        self.setup = setup

    @cached_property
    def figures(self) -> dict[str, Any]:
        """All figures; docs/guides/simulate.md describes them."""
        found: dict[str, Any] = json.loads(self._run.figures())
        return found

    @property
    def attainment(self) -> float:
        """Share of requests that met both targets."""
        return float(self.figures["attainment"]["overall"])

    @property
    def wall_s(self) -> float:
        """How long the simulation itself took."""
        return self._run.wall_s

    @property
    def events(self) -> int:
        """Events that the brain handled."""
        return self._run.events

    @cached_property
    def columns(self) -> dict[str, NDArray[np.int64]]:
        """Per request, as the extension counts: microseconds and tokens, -1 for no such moment."""
        return {name: columns.numbers(data) for name, data in self._run.columns()}

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        """Time to first token of each request."""
        import numpy as np

        first = self.columns["first_us"]
        return np.where(first < 0, np.nan, (first - self.columns["arrival_us"]) / 1e6)

    @property
    def tpot_s(self) -> NDArray[np.float64]:
        """Mean time per later token of each request; NaN for answers of one token."""
        import numpy as np

        first, end = self.columns["first_us"], self.columns["end_us"]
        later = self.columns["output_tokens"] - 1
        is_known = (self.columns["is_finished"] == 1) & (later > 0)
        return np.where(is_known, (end - first) / 1e6 / np.maximum(later, 1), np.nan)


def policies() -> dict[str, str]:
    """Names that `simulate(policy=...)` takes, with a line about each."""
    from dopd import _router

    return dict(_router.sim_policies())


def simulate(
    trace: Trace,
    *,
    policy: str = "dopd",
    workers: int = 8,
    device: str = "h100",
    model: str = "llama-3.1-8b",
    timings: str | Path | None = None,
    kv_tokens: int | None = None,
    num_seqs_max: int | None = None,
    batch_tokens_max: int | None = None,
    prefill_workers: int | None = None,
    rules: Mapping[str, Any] | None = None,
    slo_ttft_ms: float | None = None,
    slo_tpot_ms: float | None = None,
    slo_prefill_ratio: float = TTFT_PREFILL_RATIO,
    mixed_penalty: float | None = None,
    prefix_cache: bool = False,
    max_tokens: int = 0,
    faults: Sequence[Mapping[str, Any]] = (),
    seed: int = 1,
    order: Order | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Run `trace` on `workers` of `device` that serve `model`.

    policy: a name of `policies()`. prefill_workers: how many are labelled prefill, instead of the
    policy's count. rules: fields of the policy that differ, as `dopd config` names them.
    timings: a calibration (JSON file) instead of the built-in one; kv_tokens: tokens of a pool;
    num_seqs_max, batch_tokens_max: of a step (512, and prompts computed whole).
    slo_*: targets, by default 500 and 30 ms for 8B and 1000 and 40 ms for 70B; the first is at
    least slo_prefill_ratio times the unloaded prefill. mixed_penalty: what a mixed step really
    costs above the sum (0.2: a fifth); the policy has to find it out. max_tokens: what requests
    ask for; 0: the longest answer of the trace. order: a policy of yours: called once per request,
    when it comes; its value replaces the policy's own key, the lowest goes first.
    progress(arrived, requests) is called now and then; what it raises ends the run.

    Deterministic: the same arguments give the same result on any machine. The interpreter is free
    while it runs, so threads run side by side. Raises SimulationError.
    """
    setup: dict[str, Any] = {
        "policy": policy,
        "workers": workers,
        "device": device,
        "model": model,
        "timings": None if timings is None else _timings(Path(timings)),
        "kv_tokens": kv_tokens,
        "num_seqs_max": num_seqs_max,
        "batch_tokens_max": batch_tokens_max,
        "prefill_workers": prefill_workers,
        "rules": dict(rules or {}),
        "slo_ttft_ms": slo_ttft_ms,
        "slo_tpot_ms": slo_tpot_ms,
        "slo_prefill_ratio": slo_prefill_ratio,
        "mixed_penalty": mixed_penalty,
        "has_prefix_cache": prefix_cache,
        "max_tokens": max_tokens,
        "faults": [dict(fault) for fault in faults],
        "seed": seed,
    }
    from dopd import _router

    text = _json(setup)
    try:
        raw = trace.raw
        if order is not None:
            raw = raw.with_keys(_keys(trace, order, text))
        return Result(_router.simulate(raw, text, running(progress)), setup)
    except ValueError as error:
        raise SimulationError(_placed(str(error), text)) from error


def _json(setup: dict[str, Any]) -> str:
    """A line per value, so that a message's line says which."""
    for name, value in setup.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise SimulationError(f"{name} is {value!r}: {error}".lower()) from error
    return json.dumps(setup, indent=0)


def _placed(message: str, text: str) -> str:
    """With the value in place of its line in a text that the caller never saw."""
    what, found, line = message.partition(" at line ")
    number = line.partition(" ")[0]
    if not found or not number.isdecimal():
        return message
    value = text.splitlines()[int(number) - 1].rstrip(",")
    return f"{value}: {what}" if ":" in value else what


def _timings(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SimulationError(f"timings {path} cannot be read: {reason}") from error
    except ValueError as error:
        raise SimulationError(f"timings {path}: {error}") from error
    return found


def _keys(trace: Trace, order: Order, setup: str) -> array[int]:
    """What `order` says of each request, in microseconds."""
    from dopd import _router

    found = {name: memoryview(data).cast("q") for name, data in trace.raw.columns()}
    lengths = sorted(set(found["prompt_tokens"]))
    told = _router.sim_prefill(setup, lengths)
    prefill_s = dict(zip(lengths, told, strict=True))
    keys = array("q")
    for at in range(len(trace)):
        tokens, now = found["prompt_tokens"][at], found["arrival_us"][at] / 1e6
        request = Request(
            now, tokens, prefill_s[tokens], found["tenant"][at], found["priority"][at]
        )
        key = order(request, now)
        try:
            keys.append(round(key * 1e6))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"order({request}) gave {key!r}, must be seconds") from error
    return keys
