"""The scheduler that serves, driven by hand: events in, actions out, no clock and no thread.

    from dopd.brain import Brain, arrived, joined

    brain = Brain({"policy": {"order": "fcfs"}})
    brain.handle(0, joined(1, "a", "mixed"))
    brain.handle(5, arrived(7, prompt_tokens=100, max_tokens=10))
    # [{'action': 'open', 'seat': {'session': 1, 'slot': 0}, ...}]

Events and actions are those of an event log (`dopd router --record`), so that one can be decided
again here. Times are microseconds on a clock of yours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dopd.errors import DopdError

__all__ = ["Brain", "BrainError", "arrived", "joined", "reported"]

JSON = dict[str, Any]
NEVER_US = (1 << 64) - 1


class BrainError(DopdError):
    """A configuration or an event that the brain does not know."""


class Brain:
    """The same configuration and the same events give the same actions, anywhere."""

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        """config: fields that differ from the defaults (`settings` has all of them)."""
        from dopd._router import RawBrain

        try:
            self._raw = RawBrain(json.dumps(dict(config or {})))
            self.settings: JSON = json.loads(RawBrain.settings(json.dumps(dict(config or {}))))
        except ValueError as error:
            raise BrainError(f"configuration of the brain: {error}") from error

    def handle(self, now_us: int, event: Mapping[str, Any]) -> list[JSON]:
        """What is to be done about an event, in order. A time before the last one counts as it."""
        try:
            found: list[JSON] = json.loads(self._raw.handle(now_us, json.dumps(dict(event))))
        except (ValueError, TypeError, OverflowError) as error:
            raise BrainError(f"event {event.get('event')!r} at {now_us}: {error}") from error
        return found

    def next_wake(self) -> int | None:
        """When it wants `{"event": "woke"}` at the latest, in microseconds."""
        return self._raw.next_wake()


def arrived(
    request: int,
    *,
    prompt_tokens: int,
    max_tokens: int,
    choices: int = 1,
    priority: int = 0,
    deadline_us: int = NEVER_US,
    slo_ttft_us: int | None = None,
    slo_tpot_us: int | None = None,
    tenant: int = 0,
    weight: int = 1,
    order_key_us: int | None = None,
) -> JSON:
    """A request came. order_key_us: replaces the policy's own key; the lowest goes first."""
    return {
        "event": "request_arrived",
        "id": request,
        "choices": choices,
        "prompt_tokens": prompt_tokens,
        "max_tokens": max_tokens,
        "priority": priority,
        "deadline": deadline_us,
        "slo": {"ttft": slo_ttft_us, "tpot": slo_tpot_us},
        "tenant": tenant,
        "weight": weight,
        "order_key": order_key_us,
    }


def joined(
    session: int,
    name: str,
    role: str,
    *,
    timings: str = "h100-8b",
    pages_total: int = 25_000,
    page_size: int = 16,
    page_bytes: int = 16 * 131_072,
    num_seqs_max: int = 512,
    batch_tokens_max: int = 8_192,
    model_len_max: int = 131_072,
) -> JSON:
    """A worker attached. role: prefill, decode or mixed; timings: a built-in name or a file.
    Raises BrainError."""
    from dopd import _router

    try:
        told = _router.timings_json(timings)
    except ValueError as error:
        raise BrainError(str(error)) from error
    return {
        "event": "worker_joined",
        "session": session,
        "worker": {
            "name": name,
            "role": role,
            "page_size": page_size,
            "page_bytes": page_bytes,
            "pages_total": pages_total,
            "num_seqs_max": num_seqs_max,
            "batch_tokens_max": batch_tokens_max,
            "model_len_max": model_len_max,
            "timings": json.loads(told),
        },
    }


def reported(
    session: int,
    role: str,
    *,
    step: int,
    pages_free: int,
    tokens: Sequence[tuple[int, int]] = (),
    closed: Mapping[int, str] | None = None,
    step_us: int = 0,
    **load: int,
) -> JSON:
    """A worker finished a step. tokens: (slot, how many); closed: slot to `stop`, `length`, ..."""
    return {
        "event": "step_reported",
        "session": session,
        "role": role,
        "role_epoch": 0,
        "draining": False,
        "load": {
            "step": step,
            "step_us": step_us,
            "pages_free": pages_free,
            "pages_cached": 0,
            "pages_fenced": 0,
            "running": 0,
            "prefill_tokens_queued": 0,
            **load,
        },
        "opened": [],
        "arrived": [],
        "tokens": [list(one) for one in tokens],
        "closed": [
            {"slot": slot, "why": why, "retry_after": 0} for slot, why in (closed or {}).items()
        ],
    }
