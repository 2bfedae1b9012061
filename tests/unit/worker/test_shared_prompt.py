"""Choices of one request at one worker: the prompt is computed once, whoever comes and goes."""

from __future__ import annotations

import pytest

from dopd._gen.dopd.worker.v1 import worker_pb2 as pb
from dopd.types import (
    Close,
    Compute,
    Limits,
    Open,
    SamplingParams,
)
from tests.support.driven import Driven
from tests.support.fleet import BATCH_TOKENS
from tests.support.mock_model import answer

PAGE = 16
# Four pages and five tokens: the pages are shared, each choice computes the rest.
PROMPT = [(7 * n) % 256 for n in range(4 * PAGE + 5)]
MAX_TOKENS = 9
PAGES = 5
SAMPLED = {"temperature": 0.8, "seed": 11}


class Shared(Driven):
    """A worker; what it says of seats, steps and prompts' log probabilities."""

    def __init__(self) -> None:
        super().__init__(4 * PAGES)
        self.closed: list[int] = []
        self.prefilled: list[int] = []
        self.told: list[tuple[int, int, int]] = []

    def heard(self, report: pb.Report) -> None:
        self.closed += report.closed_slots
        if report.step_us:
            self.prefilled.append(report.step_prefill_tokens)
        told = report.prompt_logprobs
        self.told += zip(told.slots, told.starts, told.lens, strict=True)


def opened(slot: int, group: int = 5, prompt: list[int] = PROMPT, **fields: object) -> Open:
    values = {"max_tokens": MAX_TOKENS, "answer": [], **fields}
    return Open(
        slot,
        PAGES,
        len(prompt),
        Limits(values.pop("max_tokens"), ignore_eos=True),
        Compute(list(prompt), values.pop("answer"), group),
        SamplingParams(choice=slot, **SAMPLED),
        prompt_hash=9,
        **values,
    )


def expected(slot: int, prompt: list[int] = PROMPT) -> list[int]:
    return answer(prompt, MAX_TOKENS, choice=slot, ignore_eos=True, **SAMPLED)


def test_four_choices_of_a_long_prompt_cost_one_prefill() -> None:
    shared, alone = Shared(), Shared()
    shared.send(*(opened(slot) for slot in range(4)))
    alone.send(*(opened(slot, group=0) for slot in range(4)))
    shared.run()
    alone.run()
    assert shared.tokens == alone.tokens == {slot: expected(slot) for slot in range(4)}
    assert sum(alone.prefilled) == 4 * len(PROMPT)
    assert sum(shared.prefilled) == len(PROMPT) + 3 * (len(PROMPT) % PAGE)


def test_those_who_wait_do_nothing_and_then_give_back_what_they_save() -> None:
    driven = Shared()
    driven.send(*(opened(slot) for slot in range(4)))
    driven.turn()
    seats, batcher = driven.node.desk.seats, driven.node.desk.batcher
    assert driven.prefilled == [BATCH_TOKENS]
    assert batcher.prefill_tokens_queued == len(PROMPT) - BATCH_TOKENS + 3 * (len(PROMPT) % PAGE)
    assert (seats.pages.num_free, driven.node.num_shared()) == (0, 0)
    driven.turn()
    driven.turn()
    # Four pages that all hold, one of each.
    assert (seats.pages.num_free, driven.node.num_shared()) == (12, 4)
    driven.send(Close(0), Close(2))
    driven.turn()
    assert (seats.pages.num_free, driven.node.num_shared()) == (14, 4)
    driven.run()
    assert driven.tokens[1] == expected(1)
    assert driven.tokens[3] == expected(3)


@pytest.mark.parametrize("num_turns", [0, 1, 2])
def test_the_next_takes_over_what_was_written(num_turns: int) -> None:
    driven = Shared()
    driven.send(*(opened(slot) for slot in range(3)))
    for _ in range(num_turns):
        driven.turn()
    driven.send(Close(0))
    driven.run()
    assert driven.tokens == {slot: expected(slot) for slot in (1, 2)}
    # At most the tokens of one page more than are written twice.
    written = num_turns * BATCH_TOKENS
    assert sum(driven.prefilled) == (len(PROMPT) + written % PAGE + len(PROMPT) % PAGE)


def test_pages_of_a_choice_that_ends_with_its_first_token_stay_for_the_others() -> None:
    driven = Shared()
    driven.send(opened(0, max_tokens=1), opened(1), opened(2))
    driven.run()
    assert driven.tokens == {0: expected(0)[:1], 1: expected(1), 2: expected(2)}
    assert sum(driven.prefilled) == len(PROMPT) + 2 * (len(PROMPT) % PAGE)


def test_one_that_comes_late_or_again_shares_at_once() -> None:
    driven = Shared()
    driven.send(opened(0))
    for _ in range(4):
        driven.turn()
    driven.send(opened(1), opened(2, answer=expected(2)[:4]))
    driven.run()
    assert driven.tokens == {0: expected(0), 1: expected(1), 2: expected(2)[4:]}
    assert sum(driven.prefilled) == len(PROMPT) + 2 * (len(PROMPT) % PAGE) + 4


def test_one_that_tells_log_probabilities_of_the_prompt_computes_it() -> None:
    driven = Shared()
    driven.send(opened(1), opened(2), opened(0, prompt_logprobs=1))
    driven.run()
    assert driven.tokens == {slot: expected(slot) for slot in range(3)}
    assert sum(length for _, _, length in driven.told) == len(PROMPT) - 1
    assert {slot for slot, _, _ in driven.told} == {0}
    assert sum(driven.prefilled) == 2 * len(PROMPT) + len(PROMPT) % PAGE


@pytest.mark.parametrize("length", [1, PAGE, PAGE + 1, 2 * PAGE])
def test_each_computes_the_last_token_of_the_prompt_itself(length: int) -> None:
    prompt = PROMPT[:length]
    driven = Shared()
    driven.send(*(opened(slot, prompt=prompt) for slot in range(3)))
    driven.run()
    assert driven.tokens == {slot: expected(slot, prompt) for slot in range(3)}
    rest = length - (length - 1) // PAGE * PAGE
    assert sum(driven.prefilled) == length + 2 * rest


def test_a_number_under_which_another_prompt_runs_is_no_reason_to_share() -> None:
    driven = Shared()
    driven.send(opened(0), opened(1, prompt=PROMPT[::-1]), opened(2))
    driven.run()
    assert driven.tokens == {0: expected(0), 1: expected(1, PROMPT[::-1]), 2: expected(2)}


def test_a_lost_session_leaves_nothing_behind() -> None:
    driven = Shared()
    driven.send(*(opened(slot) for slot in range(4)))
    for _ in range(4):
        driven.turn()
    driven.node.lose_session()
    driven.turn()
    assert driven.node.is_clean()
    driven.node.attach(1)
    driven.send(*(opened(slot) for slot in range(2)))
    driven.run()
    assert driven.tokens[1][-MAX_TOKENS:] == expected(1)
