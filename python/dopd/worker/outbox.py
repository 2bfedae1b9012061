"""What waits to be reported: filled between steps, emptied once a step into one message."""

from __future__ import annotations

import logging

from dopd.sched import events as ev
from dopd.types import Logprobs, ReportColumns

log = logging.getLogger(__name__)


class Outbox:
    """Columns of the next report. Filled and emptied under the desk's lock."""

    def __init__(self) -> None:
        self._columns = ReportColumns()

    def __bool__(self) -> bool:
        return bool(self._columns)

    def add(self, effect: ev.Opened | ev.Reused | ev.Arrived | ev.Closed) -> None:
        """A seat opened, arrived or is gone."""
        columns = self._columns
        match effect:
            case ev.Opened(slot, grant):
                columns.opened_slots.append(slot)
                columns.opened_grants.append(grant)
            case ev.Reused(slot, tokens):
                columns.reused.append((slot, tokens))
            case ev.Arrived(slot, pos, tail):
                columns.arrived.append((slot, pos, tail))
            case ev.Closed(slot, reason, message, retry_ms):
                log.debug("slot %d: closed, %s: %s", slot, reason.value, message or "-")
                columns.closed.append((slot, reason, message, retry_ms))

    def add_tokens(
        self, slots: list[int], tokens: list[int], logprobs: list[tuple[int, Logprobs]]
    ) -> None:
        """Seats made a token each; logprobs: those of some, by index into `tokens`."""
        columns = self._columns
        first = len(columns.tokens)
        columns.logprobs += [(first + index, values) for index, values in logprobs]
        columns.token_slots += slots
        columns.tokens += tokens

    def add_prompt_logprobs(self, slot: int, start: int, values: list[Logprobs]) -> None:
        """Log probabilities of a seat's prompt from position `start` on; none: nothing to say."""
        if values:
            self._columns.prompt_logprobs.append((slot, start, values))

    def take(self) -> ReportColumns:
        """All that waits; nothing waits any more."""
        columns, self._columns = self._columns, ReportColumns()
        return columns
