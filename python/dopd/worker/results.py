"""A step's results, entered: what was computed, which tokens were drawn, who is at an end.

Called by the desk under its lock, once a step; the loop over its rows is the dearest part of a step
that is ours, and is kept free of calls.
"""

from __future__ import annotations

import logging

from dopd.errors import DopdError
from dopd.sched import events as ev
from dopd.sched.batch import Batch
from dopd.sched.growth import Growth
from dopd.sched.seats import Seats
from dopd.sched.sequence import Sequence
from dopd.types import CloseReason, Logprobs, Result, Scored
from dopd.worker.facts import said
from dopd.worker.outbox import Outbox

log = logging.getLogger(__name__)


def enter(
    batch: Batch, results: list[Result], seats: Seats, growth: Growth, outbox: Outbox
) -> list[ev.Finished | ev.Dropped]:
    """Take up what a step computed. Returns what becomes of the seats that ended with it."""
    ends: list[ev.Finished | ev.Dropped] = []
    slots: list[int] = []
    tokens: list[int] = []
    logprobs: list[tuple[int, Logprobs]] = []
    page_size = seats.page_size
    for row, sequence, result in zip(batch.rows, batch.sequences, results, strict=True):
        if isinstance(result, Exception):
            ends.append(_failed(sequence, result))
            continue
        if isinstance(result, Scored):
            outbox.add_prompt_logprobs(row.slot, row.start + 1, result.prompt)
            result = result.sampled
        sequence.computed = computed = sequence.computed + len(row.tokens)
        if computed >= len(row.pages) * page_size:
            growth.note(sequence)
        if computed >= sequence.keeps_at:
            seats.prefixes.keep(sequence)
        if result is None:
            continue
        if result.logprobs is not None:
            logprobs.append((len(tokens), result.logprobs))
        slots.append(row.slot)
        tokens.append(result.token)
        reason = sequence.append(result.token)
        if reason is not None:
            ends.append(ev.Finished(row.slot, reason))
    outbox.add_tokens(slots, tokens, logprobs)
    return ends


def _failed(sequence: Sequence, error: Exception) -> ev.Dropped:
    """The engine failed under this sequence alone."""
    log.error(
        "slot %d, request %s: %s",
        sequence.slot,
        sequence.request_id,
        error,
        exc_info=None if isinstance(error, DopdError) else error,
    )
    return ev.Dropped(sequence.slot, CloseReason.ERROR, said(error))
