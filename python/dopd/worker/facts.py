"""What the desk keeps to tell the router: label, facts of steps, words for failures."""

from __future__ import annotations

from dataclasses import dataclass

from dopd.errors import DopdError
from dopd.types import Role


@dataclass(slots=True)
class Label:
    """Role, drain and epoch. Greatest epoch wins. Written by the step loop under the lock."""

    role: Role
    drain: bool = False
    epoch: int = 0


@dataclass(slots=True)
class StepFacts:
    """What reports say of steps. Written by the step loop under the lock."""

    step: int = 0
    step_us: int = 0
    next_step_us: int = 0
    prefill_tokens: int = 0
    decode_seqs: int = 0


def said(error: Exception) -> str:
    """What the router is told of a row's failure: our own words, or the kind of what we did not
    foresee; its words may be anybody's."""
    if isinstance(error, DopdError):
        return str(error)
    return f"{type(error).__name__} under this request alone; the worker's log has it"
