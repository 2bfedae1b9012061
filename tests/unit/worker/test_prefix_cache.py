"""The prefix cache of one worker against what a list of all computed sequences says."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass

import pytest

from dopd._gen.dopd.worker.v1 import worker_pb2 as pb
from dopd.errors import AccountingError, LinkError
from dopd.sched import events as ev
from dopd.sched import prefix
from dopd.sched.audit import audit_pages
from dopd.sched.chain import Chain
from dopd.sched.checksum import PagesHash
from dopd.sched.pages import CACHED
from dopd.sched.prefix import wire_hash
from dopd.sched.seats import Shipment
from dopd.types import (
    Close,
    Command,
    Compute,
    Grant,
    Import,
    KvCheck,
    Limits,
    Open,
    SamplingParams,
)
from tests.support.driven import Driven
from tests.support.fleet import MAX_SEATS
from tests.support.mock_model import answer

PAGE = 16
ALICE, BOB = b"a" * 16, b"b" * 16


class Cached(Driven):
    """A worker with a prefix cache; what it says of that."""

    def __init__(self, num_pages: int) -> None:
        super().__init__(num_pages, prefix_cache=True)
        self.reused: dict[int, int] = {}
        self.open: set[int] = set()
        self.kept: set[int] = set()
        self.batches: list[int] = []

    def send(self, *commands: Command) -> None:
        for one in commands:
            if isinstance(one, Open):
                self.open.add(one.slot)
                self.tokens[one.slot] = []
                self.reused.pop(one.slot, None)
        super().send(*commands)

    def heard(self, report: pb.Report) -> None:
        self.reused.update(zip(report.reused_slots, report.reused_tokens, strict=True))
        self.open -= set(report.closed_slots)
        assert not set(report.stored_hashes) & set(report.evicted_hashes)
        self.kept |= set(report.stored_hashes)
        self.kept -= set(report.evicted_hashes)
        self.batches.append(len(report.stored_hashes) + len(report.evicted_hashes))

    def is_over(self) -> bool:
        return not self.open and not self.node.desk.seats.prefixes.has_news

    def check_index(self) -> None:
        keys = self.node.desk.seats.prefixes._page_of
        assert self.kept == {wire_hash(key) for key in keys}


def opened(slot: int, prompt: list[int], max_tokens: int = 4, **fields: object) -> Open:
    values = {"prefix_salt": ALICE, "tenant": 1, **fields}
    made = values.pop("answer", [])
    return Open(
        slot,
        -(-(len(prompt) + max_tokens) // PAGE),
        len(prompt),
        Limits(max_tokens, ignore_eos=True),
        Compute(list(prompt), made),
        SamplingParams(temperature=0.0),
        prompt_hash=9,
        **values,
    )


def tokens_of(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(256) for _ in range(length)]


@dataclass
class Naive:
    """Everything that was ever computed, and for whom: nothing is evicted."""

    computed: list[tuple[bytes, list[int]]]

    def reused(self, salt: bytes, prompt: list[int]) -> int:
        """The longest beginning in full pages, before the last token, of the same salt."""
        longest = 0
        for of, tokens in self.computed:
            equal = 0
            while equal < min(len(tokens), len(prompt)) and tokens[equal] == prompt[equal]:
                equal += 1
            if of == salt:
                longest = max(longest, min(equal, len(prompt) - 1) // PAGE * PAGE)
        return longest


@pytest.mark.parametrize("seed", range(12))
def test_what_is_reused_is_what_was_computed_for_the_same_salt(seed: int) -> None:
    rng = random.Random(seed)
    driven, naive = Cached(num_pages=4000), Naive([])
    stems = [tokens_of(rng, 90) for _ in range(3)]
    for _ in range(40):
        prompt = rng.choice(stems)[: rng.randrange(90)] + tokens_of(rng, rng.randrange(1, 20))
        salt, tenant = rng.choice(((ALICE, 1), (BOB, 2), (b"", 0)))
        max_tokens = rng.choice((1, 4, 40))
        expected = answer(prompt, max_tokens, ignore_eos=True)
        driven.send(opened(0, prompt, max_tokens, prefix_salt=salt, tenant=tenant))
        driven.run()
        assert driven.tokens[0] == expected
        assert driven.reused.get(0, 0) == (naive.reused(salt, prompt) if salt else 0)
        if salt:
            # Its last token is not computed.
            naive.computed.append((salt, prompt + expected[:-1]))
            # Another turn of the chat.
            stems[rng.randrange(3)] = prompt + expected
    driven.check_index()


@pytest.mark.parametrize("seed", range(12))
def test_answers_are_right_and_books_close_in_a_pool_that_is_too_small(seed: int) -> None:
    rng = random.Random(100 + seed)
    driven = Cached(num_pages=24)
    stems = [tokens_of(rng, 90) for _ in range(3)]
    expected: dict[int, list[int]] = {}
    num_reused = num_right = 0
    for _ in range(400):
        free = [slot for slot in range(MAX_SEATS) if slot not in driven.open]
        if free and rng.random() < 0.3:
            slot = free[0]
            prompt = rng.choice(stems)[: rng.randrange(90)] + tokens_of(rng, rng.randrange(1, 20))
            salt, tenant = rng.choice(((ALICE, 1), (BOB, 2)))
            expected[slot] = answer(prompt, 6, ignore_eos=True)
            driven.send(opened(slot, prompt, 6, prefix_salt=salt, tenant=tenant))
        elif driven.open and rng.random() < 0.05:
            slot = rng.choice(sorted(driven.open))
            driven.send(Close(slot))
        driven.turn()
        for slot, tokens in expected.items():
            assert tokens[: len(driven.tokens[slot])] == driven.tokens[slot]
            num_right += tokens == driven.tokens[slot]
        num_reused += len(driven.reused)
    driven.run()
    assert num_right and num_reused
    driven.check_index()
    assert driven.node.is_clean()


def test_sequences_that_run_share_what_one_has_computed() -> None:
    prompt = tokens_of(random.Random(1), 64)
    driven = Cached(num_pages=40)
    driven.send(opened(0, [*prompt, 1, 2], 30))
    for _ in range(5):
        driven.turn()
    assert 0 in driven.open
    driven.send(opened(1, [*prompt, 3], 30))
    driven.turn()
    assert driven.reused == {1: 64}
    assert driven.node.num_shared() == 4
    driven.run()
    assert driven.tokens[1] == answer([*prompt, 3], 30, ignore_eos=True)


def test_one_that_was_replaced_begins_with_its_own_answer() -> None:
    """A replay at the same worker computes the last token only."""
    prompt = tokens_of(random.Random(2), 30)
    expected = answer(prompt, 40, ignore_eos=True)
    driven = Cached(num_pages=40)
    driven.send(opened(0, prompt, 40))
    for _ in range(30):
        driven.turn()
    made = list(driven.tokens[0])
    driven.send(Close(0))
    driven.run()
    driven.send(opened(1, prompt, 40, answer=made))
    driven.run()
    assert made + driven.tokens[1] == expected
    # The worker says of the prompt alone what it reused.
    assert driven.reused[1] == min((len(prompt) + len(made) - 1) // PAGE * PAGE, len(prompt))


def test_it_outlives_a_session_and_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "NEWS_MAX", 3)
    prompt = tokens_of(random.Random(3), 170)
    driven = Cached(num_pages=40)
    driven.send(opened(0, prompt))
    driven.run()
    before = set(driven.kept)
    assert len(before) == 10
    driven.node.lose_session()
    driven.node.loop.turn()
    driven.node.attach(2)
    driven.kept.clear()
    driven.batches.clear()
    for _ in range(8):
        driven.turn()
    assert driven.kept == before
    assert max(driven.batches) == 3
    driven.send(opened(0, prompt))
    driven.run()
    assert driven.reused[0] == 160


def test_a_router_that_wants_none_gets_none_and_what_was_there_is_given_up() -> None:
    prompt = tokens_of(random.Random(4), 60)
    driven = Cached(num_pages=40)
    driven.send(opened(0, prompt))
    driven.run()
    assert driven.node.desk.seats.pages.num_cached == 3
    driven.node.lose_session()
    driven.node.loop.turn()
    driven.fleet.prefix_cache = False
    driven.node.attach(2)
    driven.node.loop.turn()
    pages = driven.node.desk.seats.pages
    assert (pages.num_cached, pages.num_free) == (0, 40)
    for _ in range(2):
        driven.send(opened(0, prompt))
        driven.run()
    assert driven.reused == {}


def test_a_prompt_whose_log_probabilities_are_asked_for_is_computed() -> None:
    prompt = tokens_of(random.Random(5), 60)
    driven = Cached(num_pages=40)
    driven.send(opened(0, prompt))
    driven.run()
    driven.send(opened(0, prompt, prompt_logprobs=1))
    driven.run()
    assert driven.reused == {}
    driven.send(opened(0, prompt))
    driven.run()
    assert driven.reused == {0: 48}


def test_an_equal_salt_of_another_tenant_finds_nothing() -> None:
    """Whatever a router mixes up: a page remembers whose it is."""
    prompt = tokens_of(random.Random(6), 60)
    driven = Cached(num_pages=40)
    for tenant, expected in ((1, {}), (2, {}), (1, {0: 48})):
        driven.send(opened(0, prompt, tenant=tenant))
        driven.run()
        assert driven.reused == expected


def test_debug_checks_compare_tokens() -> None:
    prompt = tokens_of(random.Random(7), 60)
    driven = Cached(num_pages=40)
    cache = driven.node.desk.seats.prefixes
    driven.turn()
    cache.is_compared = True
    driven.send(opened(0, prompt))
    driven.run()
    page = next(iter(cache._kept))
    kept = cache._kept[page]
    assert kept.tokens is not None
    kept.tokens[0] += 1
    driven.send(opened(0, prompt))
    with pytest.raises(AccountingError, match="other tokens than its own"):
        driven.run()


def test_the_end_of_a_prompt_is_evicted_before_its_beginning() -> None:
    rng = random.Random(8)
    first, second = tokens_of(rng, 97), tokens_of(rng, 60)
    driven = Cached(num_pages=9)
    driven.send(opened(0, first))
    driven.run()
    driven.send(opened(0, second))
    driven.run()
    # Six pages of the first were cached and three free; the second took four.
    driven.send(opened(0, first))
    driven.run()
    assert driven.reused[0] == 80
    assert driven.tokens[0] == answer(first, 4, ignore_eos=True)


def test_a_peer_is_told_of_own_pages_alone_and_writes_no_other() -> None:
    prompt = tokens_of(random.Random(9), 60)
    driven = Cached(num_pages=40)
    driven.send(opened(0, prompt))
    driven.run()
    seats = driven.node.desk.seats
    chain = Chain(ALICE, known=prompt)
    chain.extend(3, PAGE, [])
    kind = Import(0, [], b"".join(chain.links), prompt[48:])
    seats.handle(dataclasses.replace(opened(1, prompt), kind=kind))
    seat = seats.by_slot[1]
    cached, own = seat.sequence.pages[:3], seat.sequence.pages[3:]
    assert [seats.pages.num_owners(page) for page in cached] == [1, 1, 1]
    effects = seats.handle(ev.Begin(7, seat.nonce))
    assert effects == [ev.SendGo(7, seat.nonce, own, 3)]
    for when in ("exposed", "fenced"):
        assert seats.targets(7, seat.nonce, 3, 1) == own[:1], when
        for first in range(3):
            with pytest.raises(LinkError):
                seats.targets(7, seat.nonce, first, 1)
        if when == "exposed":
            seats.handle(Close(1))
    assert seats.pages.num_fenced == len(own)
    assert [seats.pages.state(page) for page in cached] == [CACHED] * 3


def test_a_source_writes_from_the_first_page_that_go_names() -> None:
    shipment = Shipment(Grant("d", 1, (), 5), PagesHash(KvCheck.FULL, lambda *_: []))
    shipment.grant_pages(3, 2)
    assert (shipment.issued, shipment.written, shipment.granted) == (3, 3, 5)
    assert shipment.hash is not None
    assert shipment.hash.num_pages == 3


def test_a_choice_keeps_the_pages_that_it_found_when_another_has_computed_the_rest() -> None:
    """They may be on their way to a peer already: nobody else may get them meanwhile."""
    prompt = tokens_of(random.Random(10), 6 * PAGE + 1)
    driven = Cached(num_pages=60)
    seats = driven.node.desk.seats
    driven.turn()
    limits, salted = Limits(4, ignore_eos=True), {"prefix_salt": ALICE, "tenant": 1}
    for slot in (0, 1):
        kind = Compute(list(prompt), [], slot and 5)
        seats.handle(Open(slot, 8, len(prompt), limits, kind, prompt_hash=9, **salted))
    # Somebody else has computed two pages by now, the first choice not one.
    other, first = seats.by_slot[0].sequence, seats.by_slot[1].sequence
    other.computed = 2 * PAGE
    seats.prefixes.keep(other)
    kind = Compute(list(prompt), [], 5)
    seats.handle(Open(2, 8, len(prompt), limits, kind, prompt_hash=9, **salted))
    second = seats.by_slot[2].sequence
    assert second.pages[:2] == other.pages[:2]
    first.computed = 6 * PAGE
    seats.groups.settle()
    assert second.pages[:2] == other.pages[:2]
    assert second.pages[2:6] == first.pages[2:6]
    assert second.computed == 6 * PAGE
    audit_pages(seats)
