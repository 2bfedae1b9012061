"""What a request asks of a worker, and what answers: independent of who computes it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Role(enum.Enum):
    """Label of a worker. Every worker can prefill and decode."""

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"


class CloseReason(enum.Enum):
    """Why a seat ended; the names are those of worker.proto."""

    STOP = "stop"
    LENGTH = "length"
    ASKED = "asked"
    REFUSED = "refused"
    LOST = "lost"
    PREEMPTED = "preempted"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn. Values are validated by the router."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    choice: int = 0
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class LogitAdjustments:
    """Changes to the logits before a draw: bias, then repetition, frequency, presence penalty.

    bias: (token id, value to add). A worker holds one only if it changes something.
    """

    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    bias: tuple[tuple[int, float], ...] = ()

    def __bool__(self) -> bool:
        return self != LogitAdjustments()

    @property
    def needs_prompt(self) -> bool:
        """Whether a draw depends on which tokens the prompt holds."""
        return self.repetition_penalty != 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """When an answer ends."""

    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log probability of a drawn token, and of the most likely ones, best first."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()
