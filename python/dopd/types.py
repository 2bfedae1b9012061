"""Words of the worker as plain records: no torch, no protobuf. `dopd.wire` converts from and to protobuf."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


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
class KvGeometry:
    """What must be equal on both sides of a hand-off; compared by the router when a worker joins."""

    model_hash: bytes
    dtype: str
    page_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    layout: str
    tensor_parallel: int
    page_bytes: int


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


@dataclass(frozen=True, slots=True)
class Grant:
    """A ticket for one shipment: where to dial, and the nonce to show there."""

    worker: str
    incarnation: int
    address: str
    transport: str
    nonce: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token that a step drew for one row."""

    token: int
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's part in one engine step.

    tokens: ids to compute now: a chunk of the prompt, or the last answer token. Their KV goes to positions
        start .. start + len(tokens) of the sequence.
    pages: the sequence's pages in order; page i holds positions i * page_size .. (i + 1) * page_size.
    sampling: None if no token is drawn (a chunk that is not the last one).
    pos: answer tokens made so far; the counter of the draw.
    """

    slot: int
    tokens: list[int] = field(repr=False)
    start: int
    pages: list[int] = field(repr=False)
    sampling: SamplingParams | None
    pos: int
