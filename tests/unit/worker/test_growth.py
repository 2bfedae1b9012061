"""Sequences outgrow the pages that were reserved for them; somebody may have to go."""

from __future__ import annotations

import dataclasses

import pytest

from dopd._gen.dopd.worker.v1 import worker_pb2 as pb
from dopd.sched.events import State
from dopd.types import Compute, Import, KvScrub, Limits, Open, SamplingParams
from tests.support.driven import Driven
from tests.support.mock_model import answer

PROMPT = [(7 * n) % 256 for n in range(20)]
MAX_TOKENS = 60


def opened(slot: int, **fields: object) -> Open:
    values = {"pages": 2, "kind": Compute(PROMPT), "max_tokens": MAX_TOKENS, **fields}
    limits = Limits(values.pop("max_tokens"), ignore_eos=True)
    sampling = SamplingParams(temperature=0.0)
    return Open(slot, prompt_tokens=len(PROMPT), limits=limits, sampling=sampling, **values)


class Told(Driven):
    """A worker; what it says of ends and of whom it preempted."""

    def __init__(self, num_pages: int) -> None:
        super().__init__(num_pages)
        self.closed: dict[int, str] = {}
        self.preempted = 0

    def heard(self, report: pb.Report) -> None:
        self.preempted = report.preempted
        for slot, reason in zip(report.closed_slots, report.closed_reasons, strict=True):
            assert slot not in self.closed
            self.closed[slot] = pb.CloseReason.Name(reason).removeprefix("CLOSE_REASON_")


EXPECTED = answer(PROMPT, MAX_TOKENS, ignore_eos=True)


def test_a_sequence_takes_free_pages_as_it_outgrows_its_own() -> None:
    told = Told(num_pages=5)
    told.send(opened(1))
    told.run()
    assert told.tokens[1] == EXPECTED
    assert (told.closed, told.preempted) == ({1: "LENGTH"}, 0)


def test_without_free_pages_whoever_came_last_goes_and_those_before_are_not_disturbed() -> None:
    told = Told(num_pages=8)
    told.send(opened(1), opened(2), opened(3))
    told.run()
    # 20 + 59 positions are five pages: two have no room beside each other.
    assert told.closed == {1: "LENGTH", 2: "PREEMPTED", 3: "PREEMPTED"}
    assert told.tokens[1] == EXPECTED
    for slot in (2, 3):
        assert told.tokens[slot] == EXPECTED[: len(told.tokens[slot])]
    assert len(told.tokens[3]) < len(told.tokens[2])
    assert told.preempted == 2


def test_the_less_urgent_goes_although_it_came_first() -> None:
    told = Told(num_pages=6)
    told.send(opened(1, priority=1), opened(2, priority=0))
    told.run()
    assert told.closed == {1: "PREEMPTED", 2: "LENGTH"}


def test_a_sequence_that_is_alone_and_outgrows_the_pool_goes_itself() -> None:
    told = Told(num_pages=3)
    told.send(opened(1))
    told.run()
    assert told.closed == {1: "PREEMPTED"}
    assert told.tokens[1] == EXPECTED[: 3 * 16 - len(PROMPT) + 1]


def test_a_destination_that_nobody_was_told_goes_before_those_that_run_on() -> None:
    told = Told(num_pages=5)
    told.send(opened(1), opened(2, kind=Import(), pages=2))
    told.run()
    assert told.closed == {1: "LENGTH", 2: "PREEMPTED"}
    assert told.tokens[1] == EXPECTED


@pytest.mark.parametrize("state", [State.EXPOSED, State.FROZEN, State.SENT])
def test_seats_with_a_page_on_its_way_are_not_chosen(state: State) -> None:
    told = Told(num_pages=4)
    told.send(opened(1), opened(2))
    told.turn()
    told.node.desk.seats.by_slot[2].state = state
    if state is not State.EXPOSED:
        told.node.desk.batcher.remove(told.node.desk.seats.by_slot[2].sequence)
    for _ in range(40):
        if told.closed:
            break
        told.node.loop.turn()
        for report in told.node.reports:
            told.closed |= dict.fromkeys(report.closed_slots, "gone")
    assert told.closed == {1: "gone"}, "the one in need itself"


def test_choices_share_their_prompt_and_grow_apart() -> None:
    prompt = [(3 * n) % 256 for n in range(33)]
    told = Told(num_pages=10)
    sampling = {"temperature": 0.9, "seed": 5}
    for slot in (1, 2, 3):
        one = opened(slot, kind=Compute(prompt, [], 7), pages=3, max_tokens=30)
        told.send(
            dataclasses.replace(
                one, prompt_tokens=33, sampling=SamplingParams(choice=slot, **sampling)
            )
        )
    told.run()
    # 33 + 29 positions: two pages are shared, two more are each one's own.
    assert set(told.closed.values()) == {"LENGTH"}
    for slot in (1, 2, 3):
        assert told.tokens[slot] == answer(prompt, 30, choice=slot, ignore_eos=True, **sampling)


def test_a_page_that_a_sequence_grows_into_is_zero_if_it_was_another_tenants() -> None:
    told = Told(num_pages=6)
    node = told.node
    # No poison: what the tenants leave behind stays.
    node.desk.seats.pages.on_free = lambda start, length: None
    told.send(opened(1, tenant=1, pages=5))
    told.run()
    node.desk.seats.scrub = KvScrub.TENANT
    told.send(opened(2, tenant=2))
    zeroed: list[int] = []
    fill = node.pool.fill

    def note(pages: list[int], value: int) -> None:
        zeroed.extend(pages)
        fill(pages, value)

    node.pool.fill = note  # type: ignore[method-assign]
    for _ in range(30):
        told.turn()
    sequence = node.desk.seats.by_slot[2].sequence
    assert len(sequence.pages) > 2
    # The prompt's pages and each one since, unless nobody ever had it.
    assert set(sequence.pages) - set(zeroed) <= {5}
    assert set(zeroed) == set(sequence.pages) - {5}
