"""Continuous batching: decode first, prompts in order, chunks within the budget."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd.sched.batch import SCORED_TOKENS_MAX, Batcher
from dopd.sched.sequence import Sequence
from dopd.types import CloseReason, Compute, Limits, Open, StepPolicy, StepWork

PAGE_SIZE = 16
EOS = frozenset({99})


def sequence(slot: int, prompt: list[int], answer: Iterable[int] = (), **fields: int) -> Sequence:
    limits = Limits(
        fields.pop("max_tokens", 100),
        fields.pop("min_tokens", 0),
        frozenset(fields.pop("stop", ())),
        fields.pop("ignore_eos", False),
    )
    opened = Open(slot, 20, len(prompt), limits, Compute(prompt, list(answer)), **fields)
    return Sequence.of(opened, list(range(20)), slot, EOS, 1000)


def run(batcher: Batcher) -> list[list[tuple[int, list[int], int, bool]]]:
    """Steps until every prompt is computed: rows as (slot, tokens, start, draws)."""
    steps = []
    while batcher.prefill_tokens_queued:
        batch = batcher.plan()
        steps.append([(r.slot, r.tokens, r.start, r.sampling is not None) for r in batch.rows])
        for row, one in zip(batch.rows, batch.sequences, strict=True):
            one.computed += len(row.tokens)
            if row.sampling is not None:
                one.append(7)
        batcher.advance(batch)
    return steps


def test_decode_rows_come_first_and_prompts_fill_the_rest_in_chunks() -> None:
    batcher = Batcher(max_batch_tokens=6, max_num_seqs=4)
    batcher.add(sequence(1, [10]))
    assert run(batcher) == [[(1, [10], 0, True)]]
    batcher.add(sequence(2, list(range(8))))
    batcher.add(sequence(3, [30, 31]))
    assert run(batcher) == [
        [(1, [7], 1, True), (2, [0, 1, 2, 3, 4], 0, False)],
        [(1, [7], 2, True), (2, [5, 6, 7], 5, True), (3, [30, 31], 0, True)],
    ]


def test_lower_priority_first_then_arrival() -> None:
    batcher = Batcher(max_batch_tokens=100, max_num_seqs=10)
    for slot, priority in [(1, 0), (2, -5), (3, 0), (4, -5)]:
        batcher.add(sequence(slot, [slot], priority=priority))
    assert [row.slot for row in batcher.plan().rows] == [2, 4, 1, 3]


def test_a_replay_computes_prompt_and_answer_and_goes_on_behind_it() -> None:
    batcher = Batcher(max_batch_tokens=3, max_num_seqs=3)
    batcher.add(sequence(1, [10, 11], (20, 21, 22)))
    assert run(batcher) == [[(1, [10, 11, 20], 0, False)], [(1, [21, 22], 3, True)]]
    row = batcher.plan().rows[0]
    assert (row.tokens, row.start, row.pos) == ([7], 5, 4)


def test_a_replay_cut_before_its_last_token_decodes_that_token() -> None:
    batcher = Batcher(max_batch_tokens=4, max_num_seqs=3)
    one = sequence(1, [10, 11], (20, 21, 22))
    batcher.add(one)
    run(batcher)
    batch = batcher.plan()
    assert (batch.num_decode, batch.rows[0].tokens, batch.rows[0].start) == (1, [22], 4)


def test_nothing_to_compute_is_no_batch() -> None:
    batcher = Batcher(4, 4)
    assert batcher.plan() is None
    one = sequence(1, [1])
    batcher.add(one)
    batcher.remove(one)
    assert batcher.plan() is None


def test_the_answer_ends_where_its_limits_say() -> None:
    def ends(tokens: list[int], **limits: int) -> list[CloseReason | None]:
        one = sequence(1, [1, 2], **limits)
        return [one.append(token) for token in tokens]

    stop, length = CloseReason.STOP, CloseReason.LENGTH
    assert ends([5, 99]) == [None, stop]
    assert ends([5, 99], ignore_eos=True) == [None, None]
    assert ends([5, 6], stop=[6]) == [None, stop]
    assert ends([5, 6], stop=[6], ignore_eos=True) == [None, stop]
    assert ends([99, 99, 99], min_tokens=3) == [None, None, stop]
    assert ends([5, 5, 5], max_tokens=3) == [None, None, length]
    assert ends([5, 99], max_tokens=2) == [None, stop]


def test_the_models_length_ends_an_answer() -> None:
    one = sequence(1, list(range(50)))
    one.max_model_len = 52
    assert [one.append(5), one.append(5)] == [None, CloseReason.LENGTH]


def test_ends_are_forbidden_to_the_draw_before_min_tokens() -> None:
    one = sequence(1, [1], min_tokens=2, stop=[6])
    assert one.prefill_row(1).forbidden == {6, 99}
    one.computed = 1
    one.append(5)
    assert one.decode_row().forbidden == {6, 99}
    one.append(5)
    assert one.decode_row().forbidden == frozenset()


def test_targets_are_the_prompt_tokens_behind_each_of_a_chunk() -> None:
    batcher = Batcher(max_batch_tokens=3, max_num_seqs=2)
    batcher.add(sequence(1, [10, 11, 12, 13], (20,), prompt_logprobs=2))
    batch = batcher.plan()
    assert (batch.rows[0].tokens, batch.rows[0].targets) == ([10, 11, 12], [11, 12, 13])
    assert batch.rows[0].num_top == 2
    batch.sequences[0].computed = 3
    # The answer behind the prompt is no target.
    row = batcher.plan().rows[0]
    assert (row.tokens, row.targets) == ([13, 20], [])
    batch.sequences[0].computed = 5
    batch.sequences[0].append(21)
    batcher.advance(batch)
    assert batcher.plan().rows[0].targets is None


def test_a_step_tells_of_a_bounded_number_of_prompt_positions() -> None:
    batcher = Batcher(max_batch_tokens=3 * SCORED_TOKENS_MAX, max_num_seqs=4)
    long = [1] * (SCORED_TOKENS_MAX - 5)
    for slot in (1, 2, 3):
        batcher.add(sequence(slot, long, prompt_logprobs=0))
    batcher.add(sequence(4, long))
    rows = batcher.plan().rows
    assert [(row.slot, len(row.tokens)) for row in rows] == [(1, len(long)), (2, 5), (4, len(long))]


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 10), st.integers(-2, 2)), max_size=8),
    st.integers(8, 30),
)
def test_every_token_is_computed_once_in_order_within_the_budget(
    sizes: list[tuple[int, int, int]], budget: int
) -> None:
    batcher = Batcher(budget, 8)
    for slot, (num_prompt, num_answer, priority) in enumerate(sizes):
        prompt, answer = list(range(100, 100 + num_prompt)), range(200, 200 + num_answer)
        batcher.add(sequence(slot, prompt, answer, priority=priority))
    computed: dict[int, list[int]] = {}
    for step in run(batcher):
        assert sum(len(tokens) for _, tokens, _, _ in step) <= budget
        for slot, tokens, start, _ in step:
            assert start == len(computed.setdefault(slot, []))
            computed[slot] += tokens
    for slot, (num_prompt, num_answer, _) in enumerate(sizes):
        known = [*range(100, 100 + num_prompt), *range(200, 200 + num_answer)]
        assert computed[slot][: len(known)] == known[: len(computed[slot])]
        assert len(computed[slot]) >= len(known) - 1


@pytest.mark.parametrize("has_leaver", [False, True])
def test_one_that_arrives_during_a_step_has_no_token_of_it(has_leaver: bool) -> None:
    """Its slack is that of its own tokens: else it is paused by a whole pace too long."""
    policy = StepPolicy(tpot_us=30_000)
    batcher = Batcher(100, 10)
    batcher.begin_session(policy)
    pace_us = round(policy.pace_ratio * policy.tpot_us)
    one, late, gone = (sequence(slot, [1] * 8, [7]) for slot in (1, 2, 3))
    one.computed = late.computed = gone.computed = 8
    batcher.add(one, 0)
    if has_leaver:
        batcher.add(gone, 0)
    batch = batcher.plan(0)
    # A link thread: the step is under way.
    batcher.add(late, 4_000)
    if has_leaver:
        batcher.remove(gone)
    one.computed += 1
    one.append(7)
    batcher.advance(batch, 10_000, 10_000)

    def slack_us(now_us: int) -> int | None:
        return batcher._decoding.slack_us(now_us, pace_us, policy.slack_quantile)

    # Due at 4_000; the first is due a pace after its first token.
    assert slack_us(4_000) == 0
    assert slack_us(3_000) == 1_000
    assert batcher.plan(10_000).work == StepWork(0, 0, 2, 10 + 9)
    batcher.remove(late)
    assert slack_us(4_000) == pace_us - 4_000
    assert batcher.plan(10_000).work == StepWork(0, 0, 1, 10)
