"""Workers over a fake network, everything that happens chosen by the test: no thread, no clock.

The workers are the real ones (`Desk`, `StepLoop`, mock engine); only the stream to the router and
the data links are played.
"""

from __future__ import annotations

from collections import Counter, deque

from dopd._gen.dopd.worker.v1 import worker_pb2 as pb
from dopd.engine.timings import Timings
from dopd.sched.audit import audit
from dopd.transfer.base import LinkIdentity
from dopd.transfer.fake import FakeNetwork
from dopd.types import Commands, Grant, KvCheck, Role, StepPolicy
from dopd.wire import AttachRequest, layout_hash
from dopd.worker.build import make_desk
from dopd.worker.loop import StepLoop
from dopd.worker.session import Lost, Started
from tests.support.modelled import ModelledEngine

MAX_SEATS = 4
INSTANT = Timings("instant")
# Small, so that prompts take several steps.
BATCH_TOKENS = 24


class FakeSession:
    """A session whose reports wait in the node until the test lets them through."""

    def __init__(self, session: int, node: Node) -> None:
        self.id = session
        self.is_alive = True
        self._node = node

    @property
    def num_waiting(self) -> int:
        return 0

    def report(self, message: AttachRequest) -> None:
        self._node.reports.append(message.report)

    def check_lease(self) -> bool:
        return self.is_alive

    def fail(self, reason: str) -> None:
        raise AssertionError(f"protocol error: {reason}")


class Node:
    """One worker process; `restart` gives it a new life.

    commands, reports: under way to and from the router, in order.
    """

    def __init__(self, fleet: Fleet, name: str, num_pages: int) -> None:
        self.fleet = fleet
        self.name = name
        self.num_pages = num_pages
        self.incarnation = 0
        self.start()

    def start(self) -> None:
        """A process begins."""
        self.incarnation += 1
        self.commands: deque[Commands] = deque()
        self.reports: deque[pb.Report] = deque()
        self.session: FakeSession | None = None
        engine = ModelledEngine(self.num_pages, self.fleet.timings, self.fleet.pass_s)
        identity = LinkIdentity(self.name, self.incarnation, layout_hash(engine.geometry), "")
        ticket = Grant(self.name, self.incarnation, (), 0)
        self.desk = make_desk(
            engine,
            Role.MIXED,
            ticket,
            MAX_SEATS,
            BATCH_TOKENS,
            clock=lambda: self.fleet.now,
            # Whoever reads a page that is not its own computes wrong tokens.
            is_poisoning=True,
        )
        self.pool = engine.pool
        self.transport = self.fleet.network.transport(identity, engine.pool, self.desk.links)
        self.desk.links.set_transport(self.transport)
        self.loop = StepLoop(self.desk, engine, clock=lambda: self.fleet.now)

    def crash(self) -> None:
        """The process dies, and starts anew."""
        self.transport.crash()
        self.start()

    def attach(self, session: int) -> None:
        """A session begins."""
        self.session = FakeSession(session, self)
        self.desk.post(
            Started(
                self.session,
                self.fleet.kv_check,
                prefix_cache=self.fleet.prefix_cache,
                step_policy=self.fleet.step_policy,
            )
        )

    def lose_session(self) -> None:
        """The worker sees that its session is over."""
        if self.session is not None:
            self.desk.post(Lost(self.session))
            self.session = None
        self.commands.clear()

    def deliver_command(self) -> None:
        """The oldest Cmd arrives."""
        self.desk.post(self.commands.popleft())

    def check(self) -> None:
        """What must hold in every state (handoff.md section 7, the worker's part)."""
        seats = self.desk.seats
        # page_has_one_owner, accounting_closes
        audit(seats, self.desk.batcher)
        owned = [page for seat in seats.by_slot.values() for page in seat.sequence.pages]
        self.check_shared(Counter(owned))
        live = {link.id for link in self.transport.links}
        assert {fence.link for fence in seats.fences.values()} <= live, "fence_implies_live_link"
        assert self.desk.session is not None or not seats.by_slot, "seat_has_session"
        self.check_kept()

    def check_shared(self, owners: Counter[int]) -> None:
        """Only complete pages are shared: no step and no peer writes them."""
        for seat in self.desk.seats.by_slot.values():
            sequence = seat.sequence
            for index, page in enumerate(sequence.pages):
                if owners[page] > 1:
                    end = (index + 1) * 16
                    assert end <= max(sequence.computed, seat.first * 16)

    def check_kept(self) -> None:
        """A page of the prefix cache holds what its key says, at every worker and always."""
        for page, kept in self.desk.seats.prefixes._kept.items():
            content = bytes(self.pool.page(page))
            assert self.fleet.contents.setdefault(kept.key, content) == content
            assert self.fleet.tenants.setdefault(kept.key, kept.tenant) == kept.tenant

    def num_shared(self) -> int:
        """Pages that more than one seat holds."""
        seats = self.desk.seats
        every = {page for seat in seats.by_slot.values() for page in seat.sequence.pages}
        return sum(seats.pages.num_owners(page) > 1 for page in every)

    def is_clean(self) -> bool:
        """Nothing is left of any request."""
        seats = self.desk.seats
        return (
            not seats.by_slot and not seats.fences and seats.pages.num_available == self.num_pages
        )


class Fleet:
    """Some workers, their network, and the time."""

    def __init__(
        self,
        num_workers: int,
        num_pages: int,
        kv_check: KvCheck = KvCheck.FULL,
        *,
        prefix_cache: bool = False,
        timings: Timings = INSTANT,
        step_policy: StepPolicy = StepPolicy(),
    ) -> None:
        self.now = 0.0
        self.timings = timings
        self.step_policy = step_policy
        self.kv_check = kv_check
        self.prefix_cache = prefix_cache
        # What every kept page held when it was first seen, and whose it was, by key.
        self.contents: dict[bytes, bytes] = {}
        self.tenants: dict[bytes, int] = {}
        self.network = FakeNetwork()
        self.nodes = [Node(self, f"w{i}", num_pages) for i in range(num_workers)]

    def pass_s(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds
