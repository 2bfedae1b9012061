"""How a worker that has prompts and sequences that run goes on; see worker.proto, StepPolicy."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class StepMode(enum.Enum):
    """The names are those of worker.proto."""

    FILL = "fill"
    """Prompts take what is left of the step's token limit beside those that decode."""
    CHUNK = "chunk"
    """Prompts take at most `chunk_tokens`, those that decode included."""
    CHUNK_IN_TIME = "chunk_in_time"
    """Prompts take what keeps the step within `mixed_step_ratio` of the target per token."""
    PAUSE_OR_MIX = "pause_or_mix"
    """A prompt alone between two decode steps as far as slack allows, or mixed where that is
    measured to be cheaper."""


@dataclass(frozen=True, slots=True)
class StepPolicy:
    """Constants of the choice; the router tells them, and a router that tells none wants FILL.

    Times in microseconds. tpot_us: target per token of sequences for which nobody asked for one.
    """

    mode: StepMode = StepMode.FILL
    chunk_tokens: int = 512
    tpot_us: int = 80_000
    mixed_step_ratio: float = 0.85
    pace_ratio: float = 0.95
    pause_max_us: int = 100_000
    pause_min_us: int = 50_000
    slack_quantile: float = 0.05
    mixed_penalty_start: float = 0.2
    probe_every: int = 50
    idle_slice_max_us: int = 60_000


class StepWork(NamedTuple):
    """What a step computes, in the sums on which its time depends.

    prefill_tokens: new tokens of prompts. prefill_pairs: of such a token and one that it attends
    to, itself included. decode_seqs: sequences that decode one token. decode_context: tokens of KV
    that these read together.
    """

    prefill_tokens: int = 0
    prefill_pairs: int = 0
    decode_seqs: int = 0
    decode_context: int = 0

    def with_prompts(self, prompts: Iterable[tuple[int, int]], tokens: int) -> StepWork:
        """With the first `tokens` of these prompts, one after the other: of each its tokens to
        compute, and those computed before. All of them if there are fewer."""
        rest, new_tokens, pairs = tokens, self.prefill_tokens, self.prefill_pairs
        for todo, computed in prompts:
            if rest <= 0:
                break
            new = min(todo, rest)
            rest -= new
            new_tokens += new
            pairs += new * computed + new * (new + 1) // 2
        return StepWork(new_tokens, pairs, self.decode_seqs, self.decode_context)

    @property
    def is_mixed(self) -> bool:
        """Prompts, and sequences that decode."""
        return bool(self.prefill_tokens and self.decode_seqs)
