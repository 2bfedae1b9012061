"""The KV check between two workers: damage on the way costs time and never a wrong token."""

from __future__ import annotations

import pytest

from dopd.kv.base import PagePool
from dopd.types import KvCheck
from tests.support.fleet import Fleet
from tests.support.mock_model import answer
from tests.support.model_router import END, WAIT, ModelRouter, Request

PROMPT = [(7 * i) % 256 for i in range(40)]
NUM_ROUNDS_MAX = 1000


# Of the prompt; the mock looks at the last entry alone.
NUM_GARBLED = 3


class Garbler:
    """A pool of which a transport reads a wrong bit in each entry of the first shipment."""

    def __init__(self, pool: PagePool) -> None:
        self.num_pages, self.page_bytes = pool.num_pages, pool.page_bytes
        self.num_garbled = 0
        self._pool = pool

    def page(self, index: int) -> memoryview:
        if self.num_garbled == NUM_GARBLED:
            return self._pool.page(index)
        self.num_garbled += 1
        garbled = bytearray(self._pool.page(index))
        for entry in range(0, self.page_bytes, 8):
            garbled[entry] ^= 4
        return memoryview(garbled)


def garbled_hand_off(check: KvCheck) -> tuple[Request, list[str], Garbler]:
    """A request from one worker to the other, one bit of it wrong; why seats were closed, if not
    by their end or the router's wish."""
    fleet = Fleet(2, num_pages=12, kv_check=check)
    router = ModelRouter(fleet)
    garbler = fleet.nodes[0].transport.pool = Garbler(fleet.nodes[0].transport.pool)
    for worker in range(2):
        router.attach(worker)
    request = Request(PROMPT, answer(PROMPT, 20))
    router.requests.append(request)
    messages: list[str] = []
    for _ in range(NUM_ROUNDS_MAX):
        if request.state == WAIT:
            router.place_pair(request, 0, 1)
        for worker, node in enumerate(fleet.nodes):
            while node.commands:
                node.deliver_command()
            node.loop.turn()
            while node.reports:
                messages += [text for text in node.reports[0].closed_messages if text]
                router.deliver_report(worker)
        fleet.network.settle()
        if request.state == END and all(node.is_clean() for node in fleet.nodes):
            return request, messages, garbler
    raise AssertionError(f"no end: {request}")


@pytest.mark.parametrize("check", [KvCheck.HEADER, KvCheck.FULL])
def test_damaged_kv_is_computed_again_and_the_answer_is_right(check: KvCheck) -> None:
    request, messages, garbler = garbled_hand_off(check)
    assert request.got == request.expected
    assert garbler.num_garbled == NUM_GARBLED
    assert len(messages) == 1
    assert "the KV was damaged on its way" in messages[0]


def test_without_the_check_the_damage_shows_in_the_answer() -> None:
    """That the mock's tokens depend on every byte is what makes the other test one."""
    with pytest.raises(AssertionError, match="token_once_in_order_own_request"):
        garbled_hand_off(KvCheck.OFF)
