"""What a worker computes next: decode those that run, a prompt, or both. Pure, no clock.

Called by the batcher before every step. The same as `router/core/src/step`, whose head has the
definition (tests/contract/step_vectors.json compares them). In short: a prompt alone between two
decode steps costs those that run nothing but its time, and is taken as long as their slack bears
it; mixed into a decode step it saves a reading of the weights, and costs every sequence of that
step what mixed steps are measured to cost more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dopd.sched.residents import Residents, whole_us
from dopd.types import StepMode, StepPolicy, StepWork

if TYPE_CHECKING:
    from dopd.sched.belief import Belief

MIXED_TOKENS_MIN = 64
"""Prompt tokens that a mixed step takes at least: no prompt starves."""
DECODES_MAX = 50
"""A prompt that waits moves after so many decode steps, whatever slack there is."""
FULL_STEP_RATIO = 0.95
"""Decode steps above this part of the pace leave no slack to pause in."""

Cost = Callable[[StepWork], int]
"""Microseconds of a step without what mixing costs on top, see `dopd.engine.base.Engine.cost_us`;
never less for more tokens. Where nothing is known, all zeros: then mixing is free."""

Prompts = list[tuple[int, int]]
"""In the order in which they are computed: tokens to do, tokens done before."""


@dataclass(frozen=True, slots=True)
class StepChoice:
    """Whether those that run decode, and how many prompt tokens are computed, in the order of the
    prompts. Neither: nothing to compute."""

    is_decoding: bool
    prompt_tokens: int


IDLE = StepChoice(is_decoding=False, prompt_tokens=0)
DECODE = StepChoice(is_decoding=True, prompt_tokens=0)


@dataclass(frozen=True, slots=True)
class StepView:
    """What a worker sees at a step boundary.

    is_decode: it is labelled so: others may come at any time. tokens_max: of a step. decode: of a
    step of all residents and nothing else.
    """

    now_us: int
    is_decode: bool
    tokens_max: int
    residents: Residents
    decode: StepWork
    prompts: Prompts


def choose(policy: StepPolicy, belief: Belief, view: StepView, cost: Cost) -> StepChoice:
    """What to compute next; `Belief.began` is told what came of it."""
    if not view.prompts:
        return DECODE if view.decode.decode_seqs else IDLE
    asked = _Asked(policy, belief, view, cost)
    if not view.decode.decode_seqs:
        return StepChoice(is_decoding=False, prompt_tokens=asked.nobody_decodes())
    match policy.mode:
        case StepMode.FILL:
            chunk = asked.beside
        case StepMode.CHUNK:
            chunk = policy.chunk_tokens - view.decode.decode_seqs
        case StepMode.CHUNK_IN_TIME:
            chunk = asked.chunk(asked.tau_us)
        case StepMode.PAUSE_OR_MIX:
            return asked.pause_or_mix()
    return asked.mixed(chunk) if asked.beside else DECODE


class _Asked:
    """A question, and what all answers need."""

    def __init__(self, policy: StepPolicy, belief: Belief, view: StepView, cost: Cost) -> None:
        self.policy, self.belief, self.view, self.cost = policy, belief, view, cost
        todo = sum(one for one, _ in view.prompts)
        # Prompt tokens that fit beside those that decode, and alone.
        self.beside = min(todo, max(0, view.tokens_max - view.decode.decode_seqs))
        self.most = min(todo, view.tokens_max)
        self.tpot_us = view.residents.tpot_us(cost(view.decode))
        self.tau_us = whole_us(policy.mixed_step_ratio * self.tpot_us)

    def alone_us(self, tokens: int) -> int:
        return self.cost(StepWork().with_prompts(self.view.prompts, tokens))

    def mixed_us(self, tokens: int) -> int:
        plain_us = self.cost(self.view.decode.with_prompts(self.view.prompts, tokens))
        return self.belief.expected_us(plain_us, is_mixed=tokens > 0)

    def nobody_decodes(self) -> int:
        if self.policy.mode is StepMode.CHUNK:
            return _at_least(self.policy.chunk_tokens, self.most)
        if self.policy.mode is StepMode.PAUSE_OR_MIX and self.view.is_decode:
            return _at_least(self.slice(self.policy.idle_slice_max_us), self.most)
        return self.most

    def slice(self, limit_us: int) -> int:
        """The largest slice that takes at most so long alone."""
        return _largest(self.most, limit_us, self.alone_us)

    def chunk(self, limit_us: int) -> int:
        """The largest chunk whose mixed step takes at most so long."""
        return _largest(self.beside, limit_us, self.mixed_us)

    def mixed(self, chunk: int) -> StepChoice:
        return StepChoice(is_decoding=True, prompt_tokens=_at_least(chunk, self.beside))

    def pause_or_mix(self) -> StepChoice:
        decode_us = self.cost(self.view.decode)
        # The target is lost whatever is done: then at least no token waits longer than for a pause.
        is_lost = decode_us > self.tpot_us
        chunk = self.chunk(decode_us + self.policy.pause_max_us if is_lost else self.tau_us)
        pace_us = whole_us(self.policy.pace_ratio * self.tpot_us)
        is_due = (
            self.belief.pauses + 1 >= self.policy.probe_every or self.belief.decodes >= DECODES_MAX
        )
        if not self.beside:
            if is_due:
                return StepChoice(is_decoding=False, prompt_tokens=_at_least(0, self.most))
        elif (
            is_due
            or decode_us > whole_us(FULL_STEP_RATIO * pace_us)
            or self.is_mixing_cheaper(chunk, decode_us)
        ):
            return self.mixed(chunk)
        return self.pause(decode_us)

    def is_mixing_cheaper(self, chunk: int, decode_us: int) -> bool:
        """Prompt tokens per microsecond on top of the decode step, against those of a pause."""
        slice_tokens = self.slice(self.policy.pause_max_us)
        extra_us = max(0, self.mixed_us(chunk) - decode_us)
        return chunk > 0 and chunk * self.alone_us(slice_tokens) >= slice_tokens * extra_us

    def pause(self, decode_us: int) -> StepChoice:
        """A slice alone, if those that decode can spare the time."""
        view, policy = self.view, self.policy
        slack_us = view.residents.slack_us(view.now_us, decode_us, policy.slack_quantile)
        if slack_us is None or slack_us < 0:
            return DECODE
        left_us = max(0, policy.pause_max_us - view.residents.gap_us(view.now_us))
        time_us = min(slack_us, left_us)
        tokens = self.slice(time_us)
        is_worth = time_us >= policy.pause_min_us or tokens >= view.prompts[0][0]
        if not tokens or not is_worth:
            return DECODE
        return StepChoice(is_decoding=False, prompt_tokens=tokens)


def _at_least(tokens: int, most: int) -> int:
    return min(max(tokens, MIXED_TOKENS_MIN), most)


def _largest(high: int, limit_us: int, step_us: Callable[[int], int]) -> int:
    """The largest of 0 .. high whose step takes at most so long; that of 0 need not."""
    if step_us(high) <= limit_us:
        return high
    low = 0
    while high - low > 1:
        middle = low + (high - low) // 2
        if step_us(middle) <= limit_us:
            low = middle
        else:
            high = middle
    return low
