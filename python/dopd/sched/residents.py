"""Those that decode, as the choice of the next step sees them: slack, context, time since a step.

Owned by the batcher; the same as `Residents` of `router/core/src/step` (step_vectors.json). A
sequence is due: the token it has would have come at `first + pace * (tokens - 1)`; its slack is
`due - now`, and below 0 it is behind. All decode in every step that decodes, so those of one target
gain one pace together and their order never changes: they are kept sorted by
`due - pace * steps`, which is constant, and no step has to look at each.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dopd.sched.sequence import Sequence
from dopd.types import StepPolicy


def whole_us(value: float) -> int:
    """Nearest whole number, halves up, as the router rounds."""
    return math.floor(value + 0.5)


@dataclass(frozen=True, slots=True)
class Stay:
    """What one that decodes needs to leave again: its target, its key, its context less the steps
    of all."""

    tpot_us: int
    key_us: int
    context: int


class Residents:
    """The sequences that decode, in the order in which they began to."""

    def __init__(self, policy: StepPolicy) -> None:
        self.policy = policy
        self._stays: dict[Sequence, Stay] = {}
        # By target: its pace, and the keys of those that have it, ascending. None is empty.
        self._groups: dict[int, tuple[int, list[int]]] = {}
        self._context_sum = 0
        self._steps = 0
        # How many have ever joined.
        self.joins = 0
        # When they got their last token; of those alone, when the first of them joined.
        self._last_us = 0

    def __len__(self) -> int:
        return len(self._stays)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._stays)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._stays

    @property
    def context_sum(self) -> int:
        """Tokens of KV that a step of all of them reads."""
        return self._context_sum + len(self._stays) * self._steps

    def _met(self, decode_us: int) -> list[int]:
        """Targets that a decode step of so long meets; all, where it meets none."""
        return [tpot_us for tpot_us in self._groups if tpot_us >= decode_us] or list(self._groups)

    def tpot_us(self, decode_us: int) -> int:
        """The tightest target that a decode step of decode_us meets; where it meets none, the
        tightest; the policy's of nobody."""
        return min(self._met(decode_us), default=self.policy.tpot_us)

    def join(
        self, sequence: Sequence, now_us: int, first_us: int | None = None, tokens: int = 1
    ) -> None:
        """It decodes from the next step on. first_us: when it had its first token here, made or
        arrived (None: now); tokens: how many it has since, that one included."""
        if not self._stays:
            self._last_us = now_us
        self.joins += 1
        tpot_us = sequence.tpot_us or self.policy.tpot_us
        pace_us = self._pace_us(tpot_us)
        due_us = (now_us if first_us is None else first_us) + pace_us * (tokens - 1)
        context = sequence.computed + 1 - self._steps
        self._enter(sequence, Stay(tpot_us, due_us - pace_us * self._steps, context))

    def leave(self, sequence: Sequence) -> None:
        """It decodes no more."""
        stay = self._stays.pop(sequence)
        self._context_sum -= stay.context
        _, keys = self._groups[stay.tpot_us]
        del keys[bisect.bisect_left(keys, stay.key_us)]
        if not keys:
            del self._groups[stay.tpot_us]

    def stepped(self, now_us: int, joined: Iterable[Sequence] = ()) -> None:
        """Each of them got a token, but for those that joined while the step was computed."""
        self._steps += 1
        self._last_us = now_us
        for sequence in joined:
            stay = self._stays[sequence]
            self.leave(sequence)
            key_us = stay.key_us - self._pace_us(stay.tpot_us)
            self._enter(sequence, Stay(stay.tpot_us, key_us, stay.context - 1))

    def gap_us(self, now_us: int) -> int:
        """How long they have waited for a token."""
        return max(0, now_us - self._last_us)

    def slack_us(self, now_us: int, decode_us: int, quantile: float) -> int | None:
        """The quantile of the slack, what the next decode step of decode_us gains each of them
        included, of those whose target that step meets, or of all if it meets none: of n the value
        at place floor(quantile * n). None: nobody."""
        steps, groups = self._steps, [self._groups[tpot_us] for tpot_us in self._met(decode_us)]
        count = sum(len(keys) for _, keys in groups)
        if not count:
            return None
        rank = min(math.floor(quantile * count), count - 1)
        lists = [
            (pace_us * steps - now_us + max(0, pace_us - decode_us), keys)
            for pace_us, keys in groups
        ]
        if len(lists) == 1:
            ((gain_us, keys),) = lists
            return gain_us + keys[rank]
        slacks = heapq.merge(*([gain_us + key for key in keys] for gain_us, keys in lists))
        return next(itertools.islice(slacks, rank, None))

    def _enter(self, sequence: Sequence, stay: Stay) -> None:
        self._stays[sequence] = stay
        self._context_sum += stay.context
        if stay.tpot_us not in self._groups:
            self._groups[stay.tpot_us] = (self._pace_us(stay.tpot_us), [])
        bisect.insort(self._groups[stay.tpot_us][1], stay.key_us)

    def _pace_us(self, tpot_us: int) -> int:
        return whole_us(self.policy.pace_ratio * tpot_us)
