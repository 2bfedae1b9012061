"""How much dearer mixed steps are believed to be, learnt from each, and what was chosen of late.

Owned by the batcher; the same as `Belief` of `router/core/src/step` (step_vectors.json). Optimism
ruins every answer that runs, pessimism costs next to nothing (policy study, section 4): it starts
high, and is moved slowly and within bounds.
"""

from __future__ import annotations

from dopd.sched.choice import StepChoice
from dopd.sched.residents import whole_us
from dopd.types import StepPolicy

WEIGHT = 0.05
"""Share of the newest mixed step."""
OUTLIER_MAX = 1.0
"""One step counts as no further from the belief: a page fault, a neighbour's burst."""
PENALTY_MAX = 2.0


class Belief:
    """Of one worker, for as long as its process lives: the device is the same for every router.

    penalty: a mixed step takes 1 + penalty times its parts. pauses: since the last mixed step.
    decodes: decode steps since a prompt that waits last moved.
    """

    def __init__(self, policy: StepPolicy) -> None:
        self.pauses = self.decodes = 0
        self.steps_mixed = self.steps_paused = 0
        self._is_measured = False
        self.begin_session(policy)

    def begin_session(self, policy: StepPolicy) -> None:
        """A router's start value counts until a mixed step was measured."""
        if not self._is_measured:
            self.penalty = min(max(policy.mixed_penalty_start, 0.0), PENALTY_MAX)

    @property
    def permille(self) -> int:
        """As reports tell it."""
        return whole_us(1000 * self.penalty)

    def began(self, choice: StepChoice, *, has_decodes: bool, has_prompts: bool) -> None:
        """Such a step is made. has_decodes, has_prompts: somebody ran, a prompt waited."""
        if choice.prompt_tokens and has_decodes:
            self.decodes = 0
            if choice.is_decoding:
                self.steps_mixed += 1
                self.pauses = 0
            else:
                self.steps_paused += 1
                self.pauses += 1
        elif choice.is_decoding and has_prompts:
            self.decodes += 1
        else:
            self.decodes = 0

    def measured(self, plain_us: int, took_us: int) -> None:
        """A mixed step is over. plain_us: its prediction without the penalty; 0 teaches nothing."""
        if plain_us:
            seen = took_us / plain_us - 1.0
            off = min(max(seen - self.penalty, -OUTLIER_MAX), OUTLIER_MAX)
            self.penalty = min(max(self.penalty + WEIGHT * off, 0.0), PENALTY_MAX)
            self._is_measured = True

    def expected_us(self, plain_us: int, *, is_mixed: bool) -> int:
        """Prediction of a step."""
        return whole_us(plain_us * (1.0 + self.penalty)) if is_mixed else plain_us
