"""The router's half of handoff.md section 4, as small as it can be: for tests of workers.

"Request at the router" and "Slot at the router"; where to place and when is the test's choice. It
checks what the client sees: every token once, in order, of its own request, all before the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dopd._gen.dopd.worker.v1 import worker_pb2 as pb
from dopd.sched.chain import Chain
from dopd.sched.prefix import NEWS_MAX
from dopd.types import (
    Close,
    Command,
    Commands,
    Compute,
    Import,
    Limits,
    Open,
    SamplingParams,
    Send,
)
from dopd.wire import command
from tests.support.fleet import Fleet

WAIT, PLACING, RUN, MOVING, SHIPPING, END = "WAIT PLACING RUN MOVING SHIPPING END".split()
Seat = tuple[int, int]
"""Worker and slot."""


@dataclass(eq=False)
class Request:
    """One request; `got` is what its client has."""

    prompt: list[int]
    expected: list[int]
    got: list[int] = field(default_factory=list)
    state: str = WAIT
    cur: Seat | None = None
    nxt: Seat | None = None
    planned: int | None = None
    group: int = 0
    salt: bytes = b""
    tenant: int = 0


class ModelRouter:
    """Requests, slots and sessions."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.requests: list[Request] = []
        # None: CLOSING, nobody's any more.
        self.slots: list[dict[int, Request | None]] = [{} for _ in fleet.nodes]
        self.grants: dict[Seat, pb.Grant] = {}
        self.sessions: list[int | None] = [None for _ in fleet.nodes]
        # Answer tokens that the router had when it opened each import.
        self._have: dict[Seat, int] = {}
        self._next_session = 1
        # Answer tokens beyond those known that an Open reserves pages for; None: all of them.
        self.spare_tokens: int | None = None
        # What each worker says that it keeps; tokens that seats said they reused.
        self.kept: list[set[int]] = [set() for _ in fleet.nodes]
        self.reused: list[tuple[Request, int]] = []

    # What a test may choose

    def attach(self, worker: int) -> None:
        """A worker dials: a session begins."""
        assert self.sessions[worker] is None
        self.sessions[worker] = self._next_session
        self.kept[worker].clear()
        self.fleet.nodes[worker].attach(self._next_session)
        self._next_session += 1

    def place(self, request: Request, worker: int) -> None:
        """Without a hand-off."""
        if request.state == WAIT and self.sessions[worker] is not None:
            request.cur = self._open(request, worker, self._compute(request))
            request.state = RUN

    def place_pair(self, request: Request, source: int, destination: int) -> None:
        """Prefill at one, decode at the other."""
        if request.state == WAIT and None not in (
            self.sessions[source],
            self.sessions[destination],
        ):
            request.nxt = self._open(request, destination, self._import(request))
            request.planned = source
            request.state = PLACING

    def move(self, request: Request, destination: int) -> None:
        """A live move."""
        if request.state != RUN or self.sessions[destination] is None:
            return
        if request.cur is not None and request.cur[0] != destination:
            request.nxt = self._open(request, destination, self._import(request))
            request.state = MOVING

    def give_up(self, request: Request) -> None:
        """The hand-off timer."""
        if request.state in (MOVING, SHIPPING):
            self._give_up_next(request)
            request.state = RUN

    def cancel(self, request: Request) -> None:
        """The client is gone."""
        if request.state != END:
            self._close_all(request)
            request.state = END

    def lose_session(self, worker: int) -> None:
        """The router sees that a session is over."""
        if self.sessions[worker] is None:
            return
        self.sessions[worker] = None
        self.fleet.nodes[worker].commands.clear()
        slots, self.slots[worker] = self.slots[worker], {}
        for slot, request in slots.items():
            if request is not None:
                self._lost((worker, slot), request)

    def deliver_report(self, worker: int) -> None:
        """The oldest report of a worker arrives: opened, arrived, tokens, closed, in this order."""
        report = self.fleet.nodes[worker].reports.popleft()
        if report.session != self.sessions[worker]:
            return
        for slot, grant in zip(report.opened_slots, report.opened_grants, strict=True):
            self._opened((worker, slot), grant)
        self._prefixes(worker, report)
        tails = list(report.arrived_tails)
        for slot, size in zip(report.arrived_slots, report.arrived_tail_lens, strict=True):
            self._arrived((worker, slot), tails[:size])
            tails = tails[size:]
        for slot, token in zip(report.token_slots, report.tokens, strict=True):
            request = self.slots[worker][slot]
            if request is not None and request.cur == (worker, slot):
                self._deliver(request, token)
        for slot, reason in zip(report.closed_slots, report.closed_reasons, strict=True):
            # A KeyError here is a second closed for one Open.
            request = self.slots[worker].pop(slot)
            if request is not None:
                self._closed((worker, slot), request, reason)

    def _prefixes(self, worker: int, report: pb.Report) -> None:
        assert len(report.stored_hashes) + len(report.evicted_hashes) <= NEWS_MAX
        self.kept[worker].update(report.stored_hashes)
        self.kept[worker].difference_update(report.evicted_hashes)
        for slot, tokens in zip(report.reused_slots, report.reused_tokens, strict=True):
            request = self.slots[worker][slot]
            if request is not None:
                assert request.salt
                assert 0 < tokens <= len(request.prompt)
                self.reused.append((request, tokens))

    # Events of seats

    def _opened(self, seat: Seat, grant: pb.Grant) -> None:
        request = self.slots[seat[0]][seat[1]]
        self.grants[seat] = grant
        if request is None:
            return
        if request.state == PLACING:
            assert request.planned is not None
            if self.sessions[request.planned] is None:
                self._give_up_next(request)
                request.state = WAIT
                return
            request.cur = self._open(request, request.planned, self._compute(request))
        assert request.cur is not None
        self._send_grant(request.cur, grant)
        request.state = SHIPPING

    def _arrived(self, seat: Seat, tail: list[int]) -> None:
        request = self.slots[seat[0]][seat[1]]
        if request is None:
            return
        assert request.state == SHIPPING, "arrived without a shipment"
        assert request.nxt == seat
        assert request.cur is not None
        have = self._have[seat]
        for token in tail[len(request.got) - have :]:
            self._deliver(request, token)
        self._close(request.cur)
        request.cur, request.nxt, request.state = seat, None, RUN

    def _deliver(self, request: Request, token: int) -> None:
        pos = len(request.got)
        assert request.state != END, "a token after the end"
        assert request.expected[pos : pos + 1] == [token], "token_once_in_order_own_request"
        request.got.append(token)

    def _closed(self, seat: Seat, request: Request, reason: pb.CloseReason.ValueType) -> None:
        if seat == request.cur and reason in (pb.CLOSE_REASON_STOP, pb.CLOSE_REASON_LENGTH):
            assert request.got == request.expected, "all_tokens_before_finish"
            if request.nxt is not None:
                self._give_up_next(request)
            request.state, request.cur = END, None
        else:
            assert reason != pb.CLOSE_REASON_ERROR
            self._lost(seat, request)

    def _lost(self, seat: Seat, request: Request) -> None:
        """A seat is gone that should not be: go on without the destination, or replay."""
        if seat == request.nxt:
            request.nxt = None
            if request.state == SHIPPING and request.cur is not None:
                self._command(request.cur[0], Send(request.cur[1], None))
            request.state = WAIT if request.state == PLACING else RUN
        else:
            request.cur = None
            self._close_all(request)
            request.state = WAIT

    # Commands

    def _open(self, request: Request, worker: int, kind: Compute | Import) -> Seat:
        slot = next(i for i in range(100) if i not in self.slots[worker])
        self.slots[worker][slot] = request
        if isinstance(kind, Import):
            self._have[worker, slot] = kind.have
        answer = len(request.expected)
        if self.spare_tokens is not None:
            answer = min(answer, len(request.got) + self.spare_tokens)
        tokens = len(request.prompt) + answer
        self._command(
            worker,
            Open(
                slot=slot,
                pages=-(-tokens // 16),
                prompt_tokens=len(request.prompt),
                prompt_hash=hash(tuple(request.prompt)) & 0xFFFF,
                limits=Limits(max_tokens=len(request.expected)),
                kind=kind,
                sampling=SamplingParams(temperature=0.0),
                tenant=request.tenant,
                prefix_salt=request.salt,
            ),
        )
        return worker, slot

    def _import(self, request: Request) -> Import:
        if not request.salt:
            return Import(len(request.got))
        prompt = request.prompt
        num_pages = len(prompt) // 16
        chain = Chain(request.salt, known=prompt)
        chain.extend(num_pages, 16, [])
        return Import(len(request.got), [], b"".join(chain.links), prompt[num_pages * 16 :])

    def _compute(self, request: Request) -> Compute:
        return Compute(request.prompt, list(request.got), request.group)

    def _send_grant(self, seat: Seat, grant: pb.Grant) -> None:
        sent = command(pb.Command(send=pb.Send(slot=seat[1], grant=grant)))
        self._command(seat[0], sent)

    def _give_up_next(self, request: Request) -> None:
        assert request.nxt is not None
        self._close(request.nxt)
        if request.state == SHIPPING and request.cur is not None:
            self._command(request.cur[0], Send(request.cur[1], None))
        request.nxt = None

    def _close_all(self, request: Request) -> None:
        for seat in (request.cur, request.nxt):
            if seat is not None:
                self._close(seat)
        request.cur = request.nxt = None

    def _close(self, seat: Seat) -> None:
        worker, slot = seat
        if slot in self.slots[worker]:
            self.slots[worker][slot] = None
            self._command(worker, Close(slot))

    def _command(self, worker: int, one: Command) -> None:
        session = self.sessions[worker]
        assert session is not None
        self.fleet.nodes[worker].commands.append(Commands(session, [one]))
