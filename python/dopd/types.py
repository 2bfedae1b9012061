"""Words of the worker as plain records: no torch, no protobuf. `dopd.wire` converts them."""

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
    """What must be equal on both sides of a hand-off; the router compares it at hello."""

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


@dataclass(frozen=True, slots=True)
class Grant:
    """A ticket for one shipment: where to dial, and the nonce to show there."""

    worker: str
    incarnation: int
    address: str
    transport: str
    nonce: int


@dataclass(frozen=True, slots=True)
class Peer:
    """The receiving end of a data link, as a grant names it."""

    worker: str
    incarnation: int
    address: str

    @classmethod
    def of(cls, grant: Grant) -> Peer:
        """Where a grant points."""
        return cls(grant.worker, grant.incarnation, grant.address)


@dataclass(slots=True)
class Sampled:
    """The token that a step drew for one row. Not frozen: that would triple its cost."""

    token: int
    logprobs: Logprobs | None = None


@dataclass(slots=True)
class Scored:
    """The result of a row with targets: their log probabilities, and what was drawn, if anything.

    prompt: one entry per target of the row.
    """

    prompt: list[Logprobs] = field(repr=False)
    sampled: Sampled | None


Result = Sampled | Scored | Exception | None
"""Of one row: see `dopd.engine.base.Engine.step`."""


@dataclass(slots=True, eq=False)
class History:
    """What the adjustments of one sequence look at.

    prompt: empty unless `adjustments.needs_prompt`. answer: grows token by token, never shrinks.
    cache: what an engine derived from them; it ends with the sequence.
    """

    adjustments: LogitAdjustments
    prompt: list[int] = field(repr=False)
    answer: list[int] = field(repr=False)
    cache: object = field(default=None, repr=False)


@dataclass(slots=True)
class Row:
    """One sequence's part in one engine step. Reused step by step: an engine keeps no row.

    tokens: ids to compute now: a chunk of the prompt, or the last answer token. Their KV goes to
        positions start .. start + len(tokens) of the sequence.
    pages: the sequence's pages in order; page i holds positions i * page_size and on.
    sampling: None if no token is drawn (a chunk that is not the last one).
    pos: answer tokens made so far; the counter of the draw.
    forbidden: ids that must not be drawn now (ends of the answer before `min_tokens`).
    history: what the logits are adjusted by before the draw; its answer has `pos` tokens.
    targets: the prompt's tokens at positions start + 1 and on, if their log probabilities and those
        of `num_top` alternatives at each are asked for. At most as many as `tokens`.
    """

    slot: int
    tokens: list[int] = field(repr=False)
    start: int
    pages: list[int] = field(repr=False)
    sampling: SamplingParams | None
    pos: int
    forbidden: frozenset[int] = frozenset()
    history: History | None = None
    targets: list[int] | None = field(default=None, repr=False)
    num_top: int = 0


@dataclass(frozen=True, slots=True)
class Compute:
    """Open: compute the KV of prompt and answer so far, then go on.

    prompt_group: seats of a session with the same number have the same prompt; 0: none.
    """

    prompt: list[int] = field(repr=False)
    answer: list[int] = field(repr=False, default_factory=list)
    prompt_group: int = 0


@dataclass(frozen=True, slots=True)
class Import:
    """Open: the KV comes from another worker; the router holds `have` answer tokens.

    prompt: only if the adjustments need it.
    """

    have: int = 0
    prompt: list[int] = field(repr=False, default_factory=list)


@dataclass(frozen=True, slots=True)
class Open:
    """Make a seat of `pages` pages. Answered by exactly one closed in the end."""

    slot: int
    pages: int
    prompt_tokens: int
    limits: Limits
    kind: Compute | Import
    sampling: SamplingParams = SamplingParams()
    priority: int = 0
    prompt_hash: int = 0
    request_id: str = ""
    adjustments: LogitAdjustments = LogitAdjustments()
    prompt_logprobs: int | None = None
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Send:
    """Ship the seat's KV to the holder of the grant; None: stay and go on."""

    slot: int
    grant: Grant | None


@dataclass(frozen=True, slots=True)
class Close:
    """Close a seat."""

    slot: int


@dataclass(frozen=True, slots=True)
class SetRole:
    """Change the label; obeyed only if `epoch` is above the worker's own."""

    role: Role
    drain: bool
    epoch: int


Command = Open | Send | Close | SetRole


@dataclass(frozen=True, slots=True)
class Welcome:
    """The router took the worker in: a session begins. Durations in seconds."""

    session: int
    router: str
    lease_s: float
    report_interval_s: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """The router does not take the worker in; `retry` says whether asking again makes sense."""

    message: str
    retry: bool


@dataclass(frozen=True, slots=True)
class Commands:
    """What the router wants done, in order, under one session."""

    session: int
    commands: list[Command]


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker says of itself in its hello."""

    worker: str
    incarnation: int
    role: Role
    geometry: KvGeometry
    pages_total: int
    max_num_seqs: int
    max_batch_tokens: int
    max_model_len: int
    vocab_size: int
    model: str
    device: str
    data_address: str
    transports: tuple[str, ...]
    pid: int
    timings_json: str
    version: str


@dataclass(frozen=True, slots=True)
class ReportHead:
    """State of a worker as its reports show it; see worker.proto, Report."""

    session: int
    role: Role
    role_epoch: int
    draining: bool
    pages_free: int
    pages_cached: int
    pages_fenced: int
    running: int
    prefill_tokens_queued: int
    step: int
    step_us: int = 0
    next_step_us: int = 0
    step_prefill_tokens: int = 0
    step_decode_seqs: int = 0


@dataclass(slots=True)
class ReportColumns:
    """What one report changes. token_slots[i] made tokens[i]; the rest is rare and kept as tuples.

    arrived: (slot, pos, tail). closed: (slot, reason, message, retry_ms).
    logprobs: (index into tokens, values). prompt_logprobs: (slot, position of the first, values).
    """

    opened_slots: list[int] = field(default_factory=list)
    opened_grants: list[Grant] = field(default_factory=list)
    arrived: list[tuple[int, int, list[int]]] = field(default_factory=list)
    token_slots: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    closed: list[tuple[int, CloseReason, str, int]] = field(default_factory=list)
    logprobs: list[tuple[int, Logprobs]] = field(default_factory=list)
    prompt_logprobs: list[tuple[int, int, list[Logprobs]]] = field(default_factory=list)

    def __bool__(self) -> bool:
        seats = self.closed or self.opened_slots or self.arrived
        return bool(self.tokens or seats or self.prompt_logprobs)


@dataclass(frozen=True, slots=True)
class LinkHello:
    """First frame of the dialling side of a data link."""

    protocol: int
    worker: str
    incarnation: int
    layout_hash: int
    join_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class LinkWelcome:
    """Answer of the listening side; `error` is empty if the link is up."""

    worker: str
    incarnation: int
    generation: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class LinkBegin:
    """Source to destination: here is the ticket."""

    nonce: int


@dataclass(frozen=True, slots=True)
class LinkGo:
    """Destination to source: write into these pages, in this order."""

    nonce: int
    pages: list[int] = field(repr=False)


@dataclass(frozen=True, slots=True)
class LinkWrite:
    """Source to destination: `count` whole pages follow, from the shipment's page `first`."""

    nonce: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """Source to destination: the last word of a shipment. All but `nonce` counts only if `ok`."""

    nonce: int
    ok: bool
    pages: int = 0
    pos: int = 0
    tokens: list[int] = field(repr=False, default_factory=list)
    tokens_hash: int = 0


LinkMessage = LinkHello | LinkWelcome | LinkBegin | LinkGo | LinkWrite | LinkEnd
