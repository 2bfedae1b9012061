"""The router's cost model (`router/core/src/cost`), for engines that say what steps cost by it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dopd.errors import ConfigError
from dopd.types import StepWork

# Those of router/core/src/cost/load.rs.
JSON_BYTES_MAX = 16 << 10
VALUE_MAX = 1e15


@dataclass(frozen=True, slots=True)
class Timings:
    """Step times of one model on one device; the fields are those of core/cost.

    step = t0 + max(w + b*n, f*n) + c2*pairs + c1*context + cb*batch, with n new prompt tokens and
    decoding sequences.
    """

    name: str
    step_prefill_us: float = 0.0
    step_decode_us: float = 0.0
    weights_us: float = 0.0
    memory_us_per_token: float = 0.0
    compute_us_per_token: float = 0.0
    attention_us_per_pair: float = 0.0
    context_us_per_token: float = 0.0
    batch_us_per_seq: float = 0.0
    mixed_penalty_ratio: float = 0.0
    handoff_bytes_per_s: float = 0.0
    handoff_fixed_us: float = 0.0

    @classmethod
    def from_json(cls, text: str) -> Timings:
        """As the router writes it, which has checked it."""
        found = json.loads(text)
        return cls(**{one.name: found[one.name] for one in fields(cls) if one.name in found})

    @classmethod
    def read(cls, path: Path) -> Timings:
        """A calibration file, checked as the router checks one. Raises ConfigError."""
        try:
            with path.open("rb") as file:
                text = file.read(JSON_BYTES_MAX + 1)
            if len(text) > JSON_BYTES_MAX:
                raise ConfigError(f"timings {path} are longer than {JSON_BYTES_MAX} bytes")
            found = json.loads(text)
        except (OSError, ValueError) as error:
            raise ConfigError(f"timings {path}: {error}") from error
        names = {one.name for one in fields(cls)}
        if not isinstance(found, dict) or set(found) != names or not isinstance(found["name"], str):
            raise ConfigError(
                f"timings {path} are no calibration: fields must be {', '.join(sorted(names))}, "
                "as `dopd bench engine --out FILE` writes them"
            )
        for name in names - {"name"}:
            value = found[name]
            if type(value) not in (int, float) or not 0 <= value <= VALUE_MAX:
                raise ConfigError(
                    f"timings {path}: {name} is {value!r}, must be a number of 0 to {VALUE_MAX:g}"
                )
        return cls(**found)

    def to_json(self) -> str:
        """As the hello and a calibration file carry it."""
        return json.dumps(asdict(self), indent=1)

    def plain_us(self, work: StepWork) -> int:
        """Time of one step as if mixing cost nothing on top; 0 for an empty one."""
        tokens = work.prefill_tokens + work.decode_seqs
        if not tokens:
            return 0
        start_us = self.step_prefill_us if work.prefill_tokens else self.step_decode_us
        return math.floor(
            start_us
            + max(
                self.weights_us + self.memory_us_per_token * tokens,
                self.compute_us_per_token * tokens,
            )
            + self.attention_us_per_pair * work.prefill_pairs
            + self.context_us_per_token * work.decode_context
            + self.batch_us_per_seq * work.decode_seqs
            + 0.5
        )
