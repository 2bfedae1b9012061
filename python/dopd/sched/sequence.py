"""One sequence: its tokens, how far its KV is computed, and when it ends.

KV covers prompt + pos - 1 tokens when pos answer tokens are made: the last answer token is computed
by the next step.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from dataclasses import dataclass, field

from dopd.kv.layout import pages_for
from dopd.sched.chain import Chain
from dopd.types import CloseReason, Compute, History, Limits, Open, Row, SamplingParams

NO_TOKENS: frozenset[int] = frozenset()


def tokens_hash(prompt_hash: int, answer: list[int]) -> int:
    """Prompt and answer tokens in 64 bits, as both ends of a hand-off know them (End)."""
    data = struct.pack(f"<Q{len(answer)}I", prompt_hash, *answer)
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens of one seat. Written by seat table and step loop, both under the desk's lock.

    prompt: ids; empty in an imported sequence (their KV came over the link), unless its logits
        are adjusted by them.
    answer: ids made so far, by whichever worker.
    computed: positions 0 .. computed have their KV in `pages`.
    ends: ids that end the answer: eos (unless ignored) and stop_token_ids.
    group: sequences of one session with the same number have the same prompt; 0: none.
    awaited: tokens whose KV another sequence of the group computes; this one waits. 0: it does not.
    tenant: whose it is; 0: nobody's. tpot_us: its target per token; 0: the policy's.
    chain: under what its full pages can be found; None: they are not.
    keeps_at: tokens computed at which the prefix cache is to look again.
    history: what its logits are adjusted by; None if they are not.
    prompt_logprobs: alternatives told at each position of the prompt; None: nothing is told.
    traceparent: W3C trace context of the request, for logs and spans; may be empty.
    """

    slot: int
    prompt_tokens: int
    prompt_hash: int
    prompt: list[int] = field(repr=False)
    answer: list[int] = field(repr=False)
    pages: list[int] = field(repr=False)
    sampling: SamplingParams
    limits: Limits
    ends: frozenset[int]
    max_model_len: int
    priority: int = 0
    arrival: int = 0
    computed: int = 0
    request_id: str = ""
    prompt_logprobs: int | None = None
    traceparent: str = ""
    group: int = 0
    awaited: int = 0
    tenant: int = 0
    tpot_us: int = 0
    history: History | None = None
    chain: Chain | None = None
    keeps_at: int = sys.maxsize
    row: Row = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.row = Row(self.slot, [], 0, self.pages, None, 0, history=self.history)

    @classmethod
    def of(
        cls,
        open_: Open,
        pages: list[int],
        arrival: int,
        eos: frozenset[int],
        model_len: int,
        chain: Chain | None = None,
    ) -> Sequence:
        """The sequence that an Open asks for, on pages that were allocated for it."""
        prompt = open_.kind.prompt
        answer: list[int] = []
        group = 0
        if isinstance(open_.kind, Compute):
            answer, group = list(open_.kind.answer), open_.kind.prompt_group
        ends, adjustments = open_.limits.stop_token_ids, open_.adjustments
        seen = prompt if adjustments.needs_prompt else []
        return cls(
            slot=open_.slot,
            prompt_tokens=open_.prompt_tokens,
            prompt_hash=open_.prompt_hash,
            prompt=prompt,
            answer=answer,
            pages=pages,
            sampling=open_.sampling,
            limits=open_.limits,
            ends=ends if open_.limits.ignore_eos else ends | eos,
            max_model_len=model_len,
            priority=open_.priority,
            arrival=arrival,
            request_id=open_.request_id,
            prompt_logprobs=open_.prompt_logprobs,
            traceparent=open_.traceparent,
            group=group,
            tenant=open_.tenant,
            tpot_us=open_.slo_tpot_us,
            history=History(adjustments, seen, answer) if adjustments else None,
            chain=chain,
        )

    @property
    def remaining(self) -> int:
        """Tokens known but not computed; 1 while decoding."""
        return self.prompt_tokens + len(self.answer) - self.computed

    @property
    def is_decoding(self) -> bool:
        """Only the last answer token is left to compute."""
        return self.remaining == 1 and bool(self.answer)

    def prefill_row(self, num_tokens: int) -> Row:
        """The next num_tokens as a row; a token is drawn only if they are the last ones."""
        row, start = self.row, self.computed
        end = start + num_tokens
        row.tokens = self.prompt[start:end]
        if end > self.prompt_tokens:
            row.tokens = (
                row.tokens
                + self.answer[max(start - self.prompt_tokens, 0) : end - self.prompt_tokens]
            )
        row.start = start
        row.sampling = self.sampling if num_tokens == self.remaining else None
        row.pos = len(self.answer)
        row.forbidden = self._forbidden()
        if self.prompt_logprobs is not None:
            # What follows the last token of a chunk is known, unless it is the answer.
            row.targets, row.num_top = self.prompt[start + 1 : end + 1], self.prompt_logprobs
        return row

    def decode_row(self) -> Row:
        """The last answer token as a row."""
        row, answer = self.row, self.answer
        row.tokens = [answer[-1]]
        row.targets = None
        row.start = self.computed
        row.sampling = self.sampling
        row.pos = pos = len(answer)
        row.forbidden = self._forbidden() if pos < self.limits.min_tokens else NO_TOKENS
        return row

    def append(self, token: int) -> CloseReason | None:
        """Take a drawn token; returns why the answer ends with it, or None if it goes on."""
        answer, limits = self.answer, self.limits
        answer.append(token)
        pos = len(answer)
        # An engine that can masks `forbidden` ends before; one that cannot draws them in vain.
        if token in self.ends and pos >= limits.min_tokens:
            return CloseReason.STOP
        if pos >= limits.max_tokens or self.prompt_tokens + pos >= self.max_model_len:
            return CloseReason.LENGTH
        return None

    def adopt(self, answer: list[int]) -> None:
        """The KV of prompt and all answer tokens but the last arrived over a link."""
        self.answer[:] = answer
        self.computed = self.prompt_tokens + len(answer) - 1

    def pages_used(self, page_size: int) -> int:
        """Pages that hold computed KV."""
        return pages_for(self.computed, page_size)

    def _forbidden(self) -> frozenset[int]:
        return self.ends if len(self.answer) < self.limits.min_tokens else NO_TOKENS
