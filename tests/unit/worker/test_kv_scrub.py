"""B16: no seat ever finds bytes of another tenant in its pages, and a freed page says nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from dopd.engine.mock import MockEngine
from dopd.errors import AccountingError
from dopd.types import (
    Close,
    Command,
    Commands,
    Compute,
    Grant,
    Import,
    KvCheck,
    KvScrub,
    Limits,
    Open,
    Result,
    Role,
    Row,
)
from dopd.worker.build import make_desk
from dopd.worker.desk import Desk
from dopd.worker.loop import StepLoop
from dopd.worker.session import Started
from tests.support.fleet import FakeSession, Fleet
from tests.support.scripted_router import ScriptedRouter
from tests.support.workers import running

NUM_PAGES = 8
PROMPT = [(7 * i) % 256 for i in range(40)]


class Reader(MockEngine):
    """Looks at pages as a step finds them. writer: tenant that wrote each page last.

    num_changed, num_foreign: pages found of another writer, and those not zeroed.
    """

    def __init__(self) -> None:
        super().__init__(NUM_PAGES)
        self.desk: Desk | None = None
        self.writer: dict[int, int] = {}
        self.num_changed = self.num_foreign = 0

    def step(self, rows: Sequence[Row]) -> list[Result]:
        assert self.desk is not None
        for row in rows:
            tenant = self.desk.seats.by_slot[row.slot].sequence.tenant
            for page in row.pages:
                is_foreign = self.writer.get(page, tenant) != tenant
                self.num_changed += is_foreign
                self.num_foreign += is_foreign and any(self.pool.page(page))
            end = -(-(row.start + len(row.tokens)) // 16)
            self.writer.update(dict.fromkeys(row.pages[:end], tenant))
        return super().step(rows)


class Life:
    """One worker without threads, all of whose pages a reader looks at."""

    def __init__(self, scrub: KvScrub, *, is_poisoning: bool = False) -> None:
        self.engine = Reader()
        ticket = Grant("w", 1, (), 0)
        self.desk = make_desk(
            self.engine, Role.MIXED, ticket, 4, 24, clock=lambda: 0.0, is_poisoning=is_poisoning
        )
        self.engine.desk = self.desk
        self.loop = StepLoop(self.desk, self.engine)
        node = Fleet(1, num_pages=1).nodes[0]
        self.desk.post(Started(FakeSession(1, node), KvCheck.OFF, scrub))

    def post(self, *commands: Command) -> None:
        self.desk.post(Commands(1, list(commands)))

    def run(self, tenant: int, prompt: list[int] = PROMPT, pages: int = NUM_PAGES) -> list[int]:
        """One request from its open to its end; its pages."""
        self.post(Open(1, pages, len(prompt), Limits(3), Compute(prompt), tenant=tenant))
        self.loop.turn()
        held = list(self.desk.seats.by_slot[1].sequence.pages)
        while self.desk.seats.by_slot:
            self.loop.turn()
        return held

    def found_by(self, tenant: int) -> list[bytes]:
        """What an import of this tenant, into which nobody has written, has in its pages."""
        self.post(Open(2, NUM_PAGES, len(PROMPT), Limits(3), Import(), tenant=tenant))
        self.desk.take_commands()
        pages = [bytes(self.engine.pool.page(p)) for p in range(NUM_PAGES)]
        self.post(Close(2))
        self.loop.turn()
        return pages


@pytest.mark.parametrize(
    ("scrub", "first", "second", "is_clean"),
    [
        (KvScrub.TENANT, 1, 2, True),
        (KvScrub.TENANT, 1, 0, True),
        (KvScrub.TENANT, 0, 1, True),
        (KvScrub.TENANT, 1, 1, False),
        (KvScrub.TENANT, 0, 0, False),
        (KvScrub.ALWAYS, 1, 1, True),
        (KvScrub.NEVER, 1, 2, False),
    ],
)
def test_a_page_that_changes_hands_is_zero_before_its_seat_can_use_it(
    scrub: KvScrub, first: int, second: int, is_clean: bool
) -> None:
    life = Life(scrub)
    life.run(first)
    assert any(map(any, map(life.engine.pool.page, range(NUM_PAGES)))), "the first one wrote"
    assert (not any(map(any, life.found_by(second)))) == is_clean


def test_a_page_remembers_through_a_seat_that_never_wrote() -> None:
    """Tenant 2 had the pages and wrote nothing; what tenant 1 left was gone when it got them."""
    life = Life(KvScrub.TENANT)
    life.run(1)
    assert not any(map(any, life.found_by(2)))
    assert not any(map(any, life.found_by(1)))


def test_only_pages_that_change_hands_are_zeroed(monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(KvScrub.TENANT)
    filled: list[int] = []
    monkeypatch.setattr(life.engine.pool, "fill", lambda pages, byte: filled.extend(pages))
    mine = life.run(1, pages=3)
    life.run(1)
    assert not filled, "fresh pages are zero, and its own are its own"
    others = life.run(2, pages=3)
    life.run(1)
    assert sorted(filled) == sorted(others * 2)
    assert len(mine) == 3


@pytest.mark.parametrize("seed", range(10))
def test_no_step_finds_bytes_of_another_tenant(seed: int) -> None:
    rng, life = random.Random(seed), Life(KvScrub.TENANT)
    for _ in range(150):
        slot = rng.randrange(4)
        if slot in life.desk.seats.by_slot:
            if rng.random() < 0.2:
                life.post(Close(slot))
        else:
            prompt = PROMPT[: rng.choice((1, 17, 40))]
            kind = rng.choice((Compute(prompt), Compute(prompt), Import()))
            pages = rng.choice((3, 4))
            life.post(Open(slot, pages, len(prompt), Limits(5), kind, tenant=rng.randrange(3)))
        life.loop.turn()
    assert life.engine.num_foreign == 0
    assert life.engine.num_changed > 10


def test_the_reader_sees_what_is_not_scrubbed() -> None:
    life = Life(KvScrub.NEVER)
    life.run(1)
    life.run(2)
    assert life.engine.num_foreign > 0


def test_poison_is_in_every_freed_page_and_in_no_seat() -> None:
    life = Life(KvScrub.NEVER, is_poisoning=True)
    pages = life.run(1)
    assert {bytes(life.engine.pool.page(page)) for page in pages} == {b"\xff" * 128}
    assert not any(map(any, life.found_by(1)))
    assert life.run(1) == pages


def test_tenants_share_no_page_whatever_their_group() -> None:
    life = Life(KvScrub.TENANT)
    kind = Compute(PROMPT, prompt_group=5)
    for slot, tenant in ((0, 1), (1, 2)):
        life.post(Open(slot, 3, len(PROMPT), Limits(3), kind, tenant=tenant))
    life.desk.take_commands()
    seats = life.desk.seats
    assert [seats.by_slot[slot].sequence.awaited for slot in range(2)] == [0, 0]
    life.post(Close(0), Close(1))
    # One tenant does.
    for slot in range(2):
        life.post(Open(slot, 3, len(PROMPT), Limits(3), kind, tenant=1))
    life.desk.take_commands()
    assert [seats.by_slot[slot].sequence.awaited for slot in range(2)] == [0, 32]


def test_a_worker_that_lost_count_of_its_pages_ends() -> None:
    with ScriptedRouter() as router, running("w", router.address, debug_checks=True) as worker:
        router.worker("w")
        with worker.desk.changed:
            leaked = worker.desk.seats.pages.allocate(1)
        worker.thread.join(10)
        assert isinstance(worker.failure, AccountingError)
        assert str(worker.failure) == "0 pages of seats, 1 are noted"
        with worker.desk.changed:
            worker.desk.seats.pages.free(leaked or [])
