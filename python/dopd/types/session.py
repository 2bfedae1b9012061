"""What router and worker tell each other."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from dopd.types.request import CloseReason, Limits, LogitAdjustments, Logprobs, Role, SamplingParams
from dopd.types.step import StepPolicy


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
class Endpoint:
    """One way into a worker's pool; see worker.proto, Endpoint. host: empty unless it must be equal
    to our own."""

    transport: str
    address: str
    host: str = ""


@dataclass(frozen=True, slots=True)
class Grant:
    """A ticket for one shipment: where to dial, best way first, and the nonce to show there."""

    worker: str
    incarnation: int
    endpoints: tuple[Endpoint, ...]
    nonce: int


@dataclass(frozen=True, slots=True)
class Peer:
    """The receiving end of a data link, as a grant names it."""

    worker: str
    incarnation: int
    endpoints: tuple[Endpoint, ...]

    @classmethod
    def of(cls, grant: Grant) -> Peer:
        """Where a grant points."""
        return cls(grant.worker, grant.incarnation, grant.endpoints)

    def endpoint(self, transport: str) -> Endpoint | None:
        """Its first way in by this transport."""
        return next((one for one in self.endpoints if one.transport == transport), None)


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

    prompt: only if the adjustments need it. prefix: 16 bytes a full page of the prompt, its hash
    chain. tail: the prompt behind those pages.
    """

    have: int = 0
    prompt: list[int] = field(repr=False, default_factory=list)
    prefix: bytes = field(repr=False, default=b"")
    tail: list[int] = field(repr=False, default_factory=list)


@dataclass(frozen=True, slots=True)
class Open:
    """Make a seat of `pages` pages; it takes more as it outgrows them. Answered by exactly one
    closed in the end. slo_tpot_us: its target per token; 0: the policy's own."""

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
    tenant: int = 0
    prefix_salt: bytes = b""
    slo_tpot_us: int = 0


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


class KvCheck(enum.Enum):
    """What the checksum of a shipment covers; see worker.proto."""

    OFF = "off"
    HEADER = "header"
    FULL = "full"


class KvScrub(enum.Enum):
    """When a page is zeroed before a seat gets it; see worker.proto."""

    NEVER = "never"
    TENANT = "tenant"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class Welcome:
    """The router took the worker in: a session begins. Durations in seconds."""

    session: int
    router: str
    lease_s: float
    report_interval_s: float
    kv_check: KvCheck = KvCheck.HEADER
    kv_scrub: KvScrub = KvScrub.TENANT
    prefix_cache: bool = False
    step_policy: StepPolicy = StepPolicy()


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
    pages_owned: int = 0
    step_expected_us: int = 0
    decode_step_us: int = 0
    mixed_penalty_permille: int = 0
    steps_mixed: int = 0
    steps_paused: int = 0
    preempted: int = 0


@dataclass(frozen=True, slots=True)
class LinkState:
    """A data link on which we ship; bytes_per_s 0: not measured yet. See link.proto."""

    peer: str
    transport: str
    bytes_per_s: int


@dataclass(slots=True)
class ReportColumns:
    """What one report changes. token_slots[i] made tokens[i]; the rest is rare and kept as tuples.

    arrived: (slot, pos, tail). closed: (slot, reason, message, retry_ms).
    reused: (slot, tokens). stored, evicted: hashes of prefixes.
    logprobs: (index into tokens, values). prompt_logprobs: (slot, position of the first, values).
    links: all of them, if they changed.
    """

    opened_slots: list[int] = field(default_factory=list)
    opened_grants: list[Grant] = field(default_factory=list)
    arrived: list[tuple[int, int, list[int]]] = field(default_factory=list)
    token_slots: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    closed: list[tuple[int, CloseReason, str, int]] = field(default_factory=list)
    logprobs: list[tuple[int, Logprobs]] = field(default_factory=list)
    prompt_logprobs: list[tuple[int, int, list[Logprobs]]] = field(default_factory=list)
    reused: list[tuple[int, int]] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    evicted: list[int] = field(default_factory=list)
    links: list[LinkState] | None = None

    def __bool__(self) -> bool:
        seats = self.closed or self.opened_slots or self.arrived
        prefixes = self.reused or self.stored or self.evicted
        told = self.prompt_logprobs or prefixes or self.links is not None
        return bool(self.tokens or seats or told)
