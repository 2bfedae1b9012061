"""Continuous batching with chunked prefill: which rows the next step computes.

Owns the order of the sequences that take part in steps. Called by the desk under its lock. Decode
rows come first and are always in; what is left of the token budget goes to prompts, lower priority
first, then first come, first served. A prompt that does not fit is cut into chunks.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from dopd.sched.sequence import Sequence
from dopd.types import Row

# Prompt positions whose log probabilities one step tells. With 128 alternatives each, a report of
# them has 4 MB; the router takes 16 MiB.
SCORED_TOKENS_MAX = 4096


@dataclass(slots=True)
class Batch:
    """One step. `rows[i]` is the part of `sequences[i]`; the first `num_decode` rows decode."""

    rows: list[Row] = field(default_factory=list)
    sequences: list[Sequence] = field(default_factory=list)
    num_decode: int = 0
    num_prefill_tokens: int = 0


def prefill_order(sequence: Sequence) -> tuple[int, int]:
    """Lower priority first, then arrival."""
    return (sequence.priority, sequence.arrival)


class Batcher:
    """The sequences that take part in steps."""

    def __init__(self, max_batch_tokens: int, max_num_seqs: int) -> None:
        assert max_batch_tokens >= max_num_seqs, "every decode row must fit into a step"
        self.max_batch_tokens = max_batch_tokens
        self._decoding: dict[Sequence, None] = {}
        self._prefilling: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._decoding) + len(self._prefilling)

    def __iter__(self) -> Iterator[Sequence]:
        return itertools.chain(self._decoding, self._prefilling)

    @property
    def prefill_tokens_queued(self) -> int:
        """Tokens of open prompts that are not computed yet."""
        return sum(
            sequence.remaining - max(sequence.awaited - sequence.computed, 0)
            for sequence in self._prefilling
        )

    def add(self, sequence: Sequence) -> None:
        """The sequence takes part from the next step on."""
        if sequence.is_decoding:
            self._decoding[sequence] = None
        else:
            bisect.insort(self._prefilling, sequence, key=prefill_order)

    def remove(self, sequence: Sequence) -> None:
        """The sequence takes part no more."""
        if sequence in self._decoding:
            del self._decoding[sequence]
        else:
            self._prefilling.remove(sequence)

    def plan(self) -> Batch | None:
        """The next step, or None if there is nothing to compute."""
        if not self:
            return None
        sequences = list(self._decoding)
        rows = [sequence.decode_row() for sequence in sequences]
        batch = Batch(rows, sequences, len(rows))
        budget, scored = self.max_batch_tokens - len(rows), SCORED_TOKENS_MAX
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
            batch.num_prefill_tokens += num_tokens
            rows.append(sequence.prefill_row(num_tokens))
            sequences.append(sequence)
        assert rows, "sequences wait for a prompt that nobody computes"
        return batch

    def advance(self, batch: Batch) -> None:
        """After a step: prompts that are computed decode from now on."""
        for sequence in batch.sequences[batch.num_decode :]:
            if sequence.is_decoding:
                self._prefilling.remove(sequence)
                self._decoding[sequence] = None
