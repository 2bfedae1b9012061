"""Where the threads of a worker meet: one lock over seats, batch, outbox and links.

The step loop takes commands, plans and publishes here; link threads bring their events by `links`.
A Begin and the Open of an import are answered without waiting for a step. Engine compute runs
outside of the lock: pages of seats that take part in a step are freed by the step loop only,
between steps. Nothing under the lock blocks; what a link sends, it queues.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from dopd import wire
from dopd.errors import ProtocolError
from dopd.sched import events as ev
from dopd.sched.audit import audit
from dopd.sched.batch import Batch, Batcher
from dopd.sched.events import State
from dopd.sched.growth import Growth
from dopd.sched.seats import Seat, Seats
from dopd.types import (
    CloseReason,
    Command,
    Commands,
    Import,
    Open,
    ReportColumns,
    ReportHead,
    Result,
    Role,
    Send,
    SetRole,
)
from dopd.worker.facts import Label, StepFacts, head_of
from dopd.worker.fair_lock import FairLock
from dopd.worker.links import Links
from dopd.worker.memory import KvMemory
from dopd.worker.observer import Observer
from dopd.worker.outbox import Outbox
from dopd.worker.results import enter
from dopd.worker.session import Lost, Session, Started

log = logging.getLogger(__name__)

# Merged commands that wait for a step to end; then the reader waits, and the stream's flow control.
INBOX_MAX = 1024
# More reports than these wait for the sender: it gets this long, once a step, to catch up.
REPORTS_WAITING_MAX = 32
REPORTS_WAIT_S = 0.002
# Before one was measured: between a small model on a CPU and a large one on a GPU.
START_DECODE_STEP_S = 0.01
STEP_WEIGHT = 0.2
AUDIT_S = 1.0
PREEMPTED = "its pages were needed"
# A heartbeat, due every 200 ms, waits no longer for the lock.
HEARTBEAT_LOCK_S = 0.05


class Desk:
    """See the module."""

    def __init__(
        self,
        seats: Seats,
        batcher: Batcher,
        memory: KvMemory,
        role: Role,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Guards every field below, and the seats and the batcher.
        self._lock = FairLock()
        self.changed = threading.Condition(self._lock)  # type: ignore[arg-type]
        self.seats = seats
        self.memory = memory
        self.links = Links(self.changed, seats, self._handle)
        self.batcher = batcher
        self._growth = Growth(seats)
        self.label = Label(role)
        self.session: Session | None = None
        self.observer = Observer()
        self.is_stopped = False
        # The step loop has ended. Read without the lock, as `num_turns`.
        self.is_left = False
        # Of the step loop, idle ones too; see `lifecycle.watch`.
        self.num_turns = 0
        # Ask whether the books are right, every AUDIT_S (--debug-checks).
        self.is_audited = False
        self._audited_at = 0.0
        self._is_ending = False
        self._clock = clock
        self._outbox = Outbox()
        self._inbox: deque[Started | Lost | Commands | ev.Dropped] = deque()
        # The engine computes.
        self._is_stepping = False
        self._facts = StepFacts()
        # The newest that was made for a report; read by the sender thread without the lock.
        self._last_head: ReportHead | None = None
        self._decode_step_s = START_DECODE_STEP_S

    # From the attach thread

    def post(self, item: Started | Lost | Commands) -> None:
        """Leave something for the step loop; waits while too much is there."""
        with self.changed:
            while len(self._inbox) >= INBOX_MAX and not self.is_stopped:
                self.changed.wait()
            if self._is_stepping and not self._inbox and isinstance(item, Commands):
                item = self._open_imports(item)
                if not item.commands:
                    return
            self._inbox.append(item)
            self.changed.notify_all()

    def heartbeat(self, session: int) -> wire.AttachRequest:
        """A report without columns: those leave through the step loop alone, and so in order.

        Does not wait for a lock that a starved thread holds: silence would be taken for our
        death, and the last head once more is no lie.
        """
        last = self._last_head
        is_needed = last is None or last.session != session
        if self._lock.acquire(timeout=-1 if is_needed else HEARTBEAT_LOCK_S):
            try:
                self._overdue()
                last = self._head(session)
            finally:
                self._lock.release()
        assert last is not None
        return wire.report(last, ReportColumns())

    def stop(self) -> None:
        """End the step loop after the step under way."""
        with self.changed:
            self.is_stopped = True
            self.changed.notify_all()

    def preempt(self, slot: int) -> None:
        """Take a seat's pages back before the next step, as if another needed them (`_grow`): for
        tests, which choose the seat. One whose last page is on its way keeps them."""
        with self.changed:
            self._inbox.append(ev.Dropped(slot, CloseReason.PREEMPTED, PREEMPTED))
            self.changed.notify_all()

    # From the step loop

    def wait(self, timeout_s: float) -> None:
        """Until there is something to do for the step loop, at most timeout_s."""
        with self.changed:
            self.changed.wait_for(self._has_work, timeout_s)

    def let_reports_go(self) -> None:
        """Wait while reports are made faster than they are sent: only a mocked step is so short."""
        with self.changed:
            session = self.session
            if session is not None and session.num_waiting > REPORTS_WAITING_MAX:
                self.changed.wait_for(
                    lambda: self.is_stopped or session.num_waiting <= REPORTS_WAITING_MAX,
                    REPORTS_WAIT_S,
                )

    def take_commands(self) -> None:
        """Carry out what the router asked for since the last step, in order."""
        with self.changed:
            self.num_turns += 1
            self._check_lease()
            while self._inbox:
                self._take(self._inbox.popleft())
            self.changed.notify_all()
            self._overdue()
            self._audit()
        self.memory.scrub(self.changed)

    def plan(self) -> Batch | None:
        """Freeze what is as good as shipped, then plan the next step; None if nobody steps.

        What happened meanwhile is reported now: a grant must not wait for a whole step.
        """
        with self.changed:
            for slot in self.seats.shipping():
                self._handle(ev.Boundary(slot, self._budget_bytes(slot)))
            batch, is_dirty = self._plan()
            # At least 1: a report that announces 0 has no step under way, and the router's
            # watchdog does not wait for one.
            self._facts.next_step_us = 0 if batch is None else max(1, batch.expected_us)
            self._report()
            self._is_stepping = batch is not None
        if is_dirty:
            self.memory.scrub(self.changed)
        return batch

    @property
    def next_step_s(self) -> float:
        """What the step under way was expected to take; read without the lock."""
        return self._facts.next_step_us / 1e6

    def publish(self, batch: Batch | None, results: list[Result], step_us: int) -> None:
        """Enter a step's results, and report it with all that happened since the last report."""
        with self.changed:
            self._is_stepping = False
        # Pages that were granted meanwhile, before the grants are told.
        self.memory.scrub(self.changed)
        with self.changed:
            if batch is not None:
                self._enter(batch, results, step_us)
            self._report(step_us)

    @property
    def is_over(self) -> bool:
        """The step loop has nothing more to do: stopped, or drained, empty and all reported."""
        with self.changed:
            is_empty = not (self.seats.by_slot or self._outbox or self._inbox)
            return self.is_stopped or (self.seats.draining and is_empty)

    def drain(self) -> None:
        """Refuse every Open from now on, whatever label the router gives."""
        with self.changed:
            self._is_ending = self.seats.draining = True

    # Under the lock

    def _has_work(self) -> bool:
        has_news = self._outbox or self.seats.prefixes.has_news or self.links.has_news
        is_told = has_news and self.session is not None
        return bool(self.is_stopped or self._inbox or len(self.batcher) or is_told)

    def _take(self, item: Started | Lost | Commands | ev.Dropped) -> None:
        match item:
            case Started(session, kv_check, kv_scrub, prefix_cache, step_policy):
                if self.session is not None:
                    # Its end was lost on the way here; it cannot be that both live.
                    self._lose_session()
                self.session = session
                self.memory.begin_session(kv_check, kv_scrub)
                self.seats.prefixes.is_compared = self.is_audited
                self.seats.prefixes.begin_session(prefix_cache)
                self.batcher.begin_session(step_policy)
            case Lost(session) if session is self.session:
                self._lose_session()
            case ev.Dropped(slot):
                seat = self.seats.by_slot.get(slot)
                if seat is not None and seat.state < State.FROZEN:
                    self._preempt(item)
            case Commands(session_id, commands):
                if self.session is not None and session_id == self.session.id:
                    self._carry_out(self.session, commands)

    def _open_imports(self, item: Commands) -> Commands:
        """Leading Opens of imports are carried out during a step: prompts elsewhere wait for their
        grants. Those of pages to be zeroed are told with the step. Returns the rest."""
        session, done = self.session, 0
        if session is None or session.id != item.session or not session.check_lease():
            return item
        for command in item.commands:
            if not (isinstance(command, Open) and isinstance(command.kind, Import)):
                break
            try:
                self._command(command)
            except ProtocolError:
                # Again from the step loop, which may end the session.
                break
            done += 1
        if done and not self.memory.is_dirty:
            self._report()
        return Commands(item.session, item.commands[done:])

    def _carry_out(self, session: Session, commands: list[Command]) -> None:
        try:
            for command in commands:
                self._command(command)
        except ProtocolError as error:
            log.error("session %#x is broken off: %s", session.id, error)
            session.fail(str(error))
            self._lose_session()

    def _plan(self) -> tuple[Batch | None, bool]:
        """The next step, with the pages that it fills; and whether some are to be zeroed before."""
        label = self.label.role is Role.DECODE
        while (batch := self.batcher.plan(self._now_us(), is_decode_label=label)) is not None:
            match self._growth.grow(batch):
                case Seat(slot=slot):
                    # One seat fewer each time.
                    self._preempt(ev.Dropped(slot, CloseReason.PREEMPTED, PREEMPTED))
                case ev.Scrub() as dirty:
                    self.memory.note(dirty)
                    return batch, True
                case None:
                    return batch, False
        return None, False

    def _preempt(self, event: ev.Dropped) -> None:
        log.info("slot %d is preempted: %d pages free", event.slot, self.seats.pages.num_free)
        self._facts.preempted += 1
        self._handle(event)

    def _now_us(self) -> int:
        return int(self._clock() * 1e6)

    def _check_lease(self) -> None:
        """A session whose lease is over gets no step and no word more; its end follows."""
        if self.session is not None and not self.session.check_lease():
            self._lose_session()

    def _lose_session(self) -> None:
        self._handle(ev.SessionLost())
        self._outbox.take()
        self.session = None

    def _command(self, command: Command) -> None:
        match command:
            case Send(slot, None):
                self._handle(ev.Stay(slot))
            case SetRole(role, drain, epoch):
                if epoch > self.label.epoch:
                    self.label = Label(role, drain, epoch)
                    self.seats.draining = drain or self._is_ending
            case Open(slot, request_id=request, traceparent=trace):
                log.debug("slot %d: open for request %s, trace %s", slot, request, trace or "none")
                self._handle(command)
            case _:
                self._handle(command)

    def _handle(self, event: ev.Event) -> None:
        for effect in self.seats.handle(event, self._clock()):
            self._act(effect)

    def _act(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Opened() | ev.Reused() | ev.Arrived() | ev.Closed():
                self._outbox.add(effect)
            case ev.Scrub():
                self.memory.note(effect)
            case ev.Joins(sequence):
                self.batcher.add(sequence, self._now_us())
                self._growth.note(sequence)
                self.observer.joined(sequence)
            case ev.Leaves(sequence):
                self.batcher.remove(sequence)
                self._growth.forget(sequence)
                self.observer.left(sequence)
            case _:
                self.links.act(effect)
        self.changed.notify_all()

    def _report(self, step_us: int = 0) -> None:
        """One message, if a step is to be closed or anything is to be said."""
        columns = self._outbox.take()
        if self.seats.prefixes.has_news:
            columns.stored, columns.evicted = self.seats.prefixes.take_news()
        if self.session is not None:
            columns.links = self.links.take_news(self.session.id, self._clock())
        if self.session is not None and (step_us or columns):
            self.session.report(wire.report(self._head(self.session.id, step_us), columns))

    def _overdue(self) -> None:
        for effect in self.seats.overdue(self._clock()):
            self._act(effect)

    def _audit(self) -> None:
        now = self._clock()
        if self.is_audited and now - self._audited_at >= AUDIT_S:
            self._audited_at = now
            audit(self.seats, self.batcher)

    def _budget_bytes(self, slot: int) -> int:
        shipment = self.seats.by_slot[slot].shipment
        # A seat that was SENT over a link that is down by now still names it.
        link = None if shipment is None else shipment.link
        return int(self.links.bytes_per_s(link) * self._decode_step_s)

    def _enter(self, batch: Batch, results: list[Result], us: int) -> None:
        ends = enter(batch, results, self.seats, self._growth, self._outbox)
        self.batcher.advance(batch, self._now_us(), us)
        # Before anybody leaves: what was computed is for the others, too.
        self.seats.groups.settle()
        self.observer.stepped(batch.sequences)
        for event in ends:
            self._handle(event)
        for slot in self.seats.shipping():
            self._handle(ev.Computed(slot))
        self._note(batch, us)

    def _note(self, batch: Batch, step_us: int) -> None:
        self._facts.note(batch)
        if not self.batcher:
            # The report of this step is the last one for a while.
            self._facts.next_step_us = 0
        if batch.num_decode and not batch.work.prefill_tokens:
            self._decode_step_s += STEP_WEIGHT * (step_us / 1e6 - self._decode_step_s)

    def _head(self, session: int, step_us: int = 0) -> ReportHead:
        facts, seats, batcher = self._facts, self.seats, self.batcher
        self._last_head = head_of(session, self.label, facts, seats, batcher, step_us)
        return self._last_head
