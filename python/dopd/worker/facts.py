"""What the desk keeps to tell the router: label, facts of steps, words for failures."""

from __future__ import annotations

from dataclasses import dataclass

from dopd.errors import DopdError
from dopd.sched.batch import Batch, Batcher
from dopd.sched.seats import Seats
from dopd.types import ReportHead, Role


@dataclass(slots=True)
class Label:
    """Role, drain and epoch. Greatest epoch wins. Written by the step loop under the lock."""

    role: Role
    drain: bool = False
    epoch: int = 0


@dataclass(slots=True)
class StepFacts:
    """What reports say of steps. Written by the step loop under the lock.

    expected_us: of the step that ended last; next_step_us: of the one under way.
    """

    step: int = 0
    expected_us: int = 0
    next_step_us: int = 0
    prefill_tokens: int = 0
    decode_seqs: int = 0
    preempted: int = 0

    def note(self, batch: Batch) -> None:
        """A step ended."""
        self.step += 1
        self.expected_us = batch.expected_us
        self.prefill_tokens = batch.work.prefill_tokens
        self.decode_seqs = batch.num_decode


def head_of(
    session: int,
    label: Label,
    facts: StepFacts,
    seats: Seats,
    batcher: Batcher,
    step_us: int,
) -> ReportHead:
    """State of a worker as its reports show it. step_us: of the step that is closed; 0: none."""
    pages, belief, decode_us = seats.pages, batcher.belief, batcher.decode_step_us
    return ReportHead(
        session=session,
        role=label.role,
        role_epoch=label.epoch,
        draining=seats.draining,
        pages_free=pages.num_free,
        pages_cached=pages.num_cached,
        pages_fenced=pages.num_fenced,
        pages_owned=pages.num_owned,
        running=len(batcher),
        prefill_tokens_queued=batcher.prefill_tokens_queued,
        step=facts.step,
        step_us=step_us,
        next_step_us=facts.next_step_us,
        step_prefill_tokens=facts.prefill_tokens if step_us else 0,
        step_decode_seqs=facts.decode_seqs if step_us else 0,
        step_expected_us=facts.expected_us if step_us else 0,
        decode_step_us=decode_us,
        mixed_penalty_permille=belief.permille,
        steps_mixed=belief.steps_mixed,
        steps_paused=belief.steps_paused,
        preempted=facts.preempted,
    )


def said(error: Exception) -> str:
    """What the router is told of a row's failure: our own words, or the kind of what we did not
    foresee; its words may be anybody's."""
    if isinstance(error, DopdError):
        return str(error)
    return f"{type(error).__name__} under this request alone; the worker's log has it"
