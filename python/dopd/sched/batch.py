"""Continuous batching with chunked prefill: which rows the next step computes.

Owns the order of the sequences that take part in steps. Called by the desk under its lock. `choice`
says whether those that decode are in, all of them or none, and how many prompt tokens; these go to
prompts, lower priority first, then first come, first served. A prompt that does not fit is cut into
chunks.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from dopd.sched.belief import Belief
from dopd.sched.choice import DECODE, Cost, StepChoice, StepView, choose
from dopd.sched.residents import Residents
from dopd.sched.sequence import Sequence
from dopd.types import Row, StepPolicy, StepWork

# Prompt positions whose log probabilities one step tells. With 128 alternatives each, a report of
# them has 4 MB; the router takes 16 MiB.
SCORED_TOKENS_MAX = 4096


@dataclass(slots=True)
class Batch:
    """One step. `rows[i]` is the part of `sequences[i]`; the first `num_decode` rows decode.

    choice: what led to it. has_decodes, has_prompts: somebody ran, a prompt waited.
    work: what the rows come to. plain_us: what the engine expects of it without what mixing costs
    on top; 0: it cannot tell. expected_us: with it. joins: of residents, when it was chosen.
    """

    choice: StepChoice
    has_decodes: bool
    has_prompts: bool
    rows: list[Row] = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)
    num_decode: int = 0
    joins: int = 0
    work: StepWork = StepWork()
    plain_us: int = 0
    expected_us: int = 0


def prefill_order(sequence: Sequence) -> tuple[int, int]:
    """Lower priority first, then arrival."""
    return (sequence.priority, sequence.arrival)


class Batcher:
    """The sequences that take part in steps. Times are microseconds of the caller's clock.

    cost_us: of the engine; by default nothing is known.
    """

    def __init__(
        self, max_batch_tokens: int, max_num_seqs: int, cost_us: Cost = lambda work: 0
    ) -> None:
        assert max_batch_tokens >= max_num_seqs, "every decode row must fit into a step"
        self.max_batch_tokens = max_batch_tokens
        self._cost_us = cost_us
        self._prefilling: list[Sequence] = []
        self.policy = StepPolicy()
        self.belief = Belief(self.policy)
        self._decoding = Residents(self.policy)

    def __len__(self) -> int:
        return len(self._decoding) + len(self._prefilling)

    def __iter__(self) -> Iterator[Sequence]:
        return itertools.chain(self._decoding, self._prefilling)

    def begin_session(self, policy: StepPolicy) -> None:
        """The router of a new session has these wishes; nothing of the last one takes part."""
        self.policy = policy
        self._decoding = Residents(policy)
        self.belief.begin_session(policy)

    @property
    def prefill_tokens_queued(self) -> int:
        """Tokens of open prompts that are not computed yet."""
        return sum(
            sequence.remaining - max(sequence.awaited - sequence.computed, 0)
            for sequence in self._prefilling
        )

    @property
    def decode_step_us(self) -> int:
        """What a step is expected to take that only decodes those that run; 0: nobody, unknown."""
        return self._cost_us(self._decode_work()) if self._decoding else 0

    def add(self, sequence: Sequence, now_us: int = 0) -> None:
        """The sequence takes part from the next step on."""
        if sequence.is_decoding:
            self._decoding.join(sequence, now_us)
        else:
            bisect.insort(self._prefilling, sequence, key=prefill_order)

    def remove(self, sequence: Sequence) -> None:
        """The sequence takes part no more."""
        if sequence in self._decoding:
            self._decoding.leave(sequence)
        else:
            self._prefilling.remove(sequence)

    def plan(self, now_us: int = 0, *, is_decode_label: bool = False) -> Batch | None:
        """The next step, or None if there is nothing to compute. Changes nothing."""
        if not self:
            return None
        decode = self._decode_work()
        # The usual step has no prompt, and nothing to choose.
        choice, prompts = DECODE, []
        if self._prefilling:
            prompts = [(one.remaining, one.computed) for one in self._prefilling if not one.awaited]
            view = StepView(
                now_us, is_decode_label, self.max_batch_tokens, self._decoding, decode, prompts
            )
            choice = choose(self.policy, self.belief, view, self._cost_us)
        batch = Batch(choice, bool(self._decoding), bool(prompts))
        if choice.is_decoding:
            batch.sequences = list(self._decoding)
            batch.rows = [sequence.decode_row() for sequence in batch.sequences]
            batch.num_decode = len(batch.rows)
            batch.joins = self._decoding.joins
            batch.work = decode
        if choice.prompt_tokens:
            self._add_prompts(batch, choice.prompt_tokens)
        assert batch.rows, "sequences wait for a prompt that nobody computes"
        batch.plain_us = self._cost_us(batch.work)
        batch.expected_us = self.belief.expected_us(batch.plain_us, is_mixed=batch.work.is_mixed)
        return batch

    def advance(self, batch: Batch, now_us: int = 0, took_us: int = 0) -> None:
        """After a step: prompts that are computed decode from now on."""
        self.belief.began(
            batch.choice, has_decodes=batch.has_decodes, has_prompts=batch.has_prompts
        )
        if batch.work.is_mixed:
            self.belief.measured(batch.plain_us, took_us)
        if batch.num_decode:
            self._decoding.stepped(now_us, self._joined_since(batch))
        for sequence in batch.sequences[batch.num_decode :]:
            if sequence.is_decoding:
                self._prefilling.remove(sequence)
                self._decoding.join(sequence, now_us)

    def _joined_since(self, batch: Batch) -> list[Sequence]:
        """Those whose KV arrived while the step was computed: they have no token of it."""
        if self._decoding.joins == batch.joins:
            return []
        stepped = set(batch.sequences)
        return [sequence for sequence in self._decoding if sequence not in stepped]

    def _decode_work(self) -> StepWork:
        residents = self._decoding
        return StepWork(0, 0, len(residents), residents.context_sum)

    def _add_prompts(self, batch: Batch, budget: int) -> None:
        """Rows of at most `budget` prompt tokens, in the order of the prompts."""
        scored, parts = SCORED_TOKENS_MAX, []
        for sequence in self._prefilling:
            if budget == 0:
                break
            if sequence.awaited:
                continue
            num_tokens = min(sequence.remaining, budget)
            if sequence.prompt_logprobs is not None:
                num_tokens = min(num_tokens, scored)
                scored -= num_tokens
                if not num_tokens:
                    continue
            budget -= num_tokens
            parts.append((num_tokens, sequence.computed))
            batch.rows.append(sequence.prefill_row(num_tokens))
            batch.sequences.append(sequence)
        batch.work = batch.work.with_prompts(parts, sum(new for new, _ in parts))
