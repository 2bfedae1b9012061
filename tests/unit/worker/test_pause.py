"""A long prompt beside sequences that decode, in modelled time: pauses within their slack."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Sequence

import pytest

from dopd._gen.dopd.worker.v1 import worker_pb2 as pb
from dopd.engine.timings import Timings
from dopd.types import Commands, Compute, Grant, Limits, Open, Role, SamplingParams, StepMode
from dopd.types import StepPolicy as Policy
from dopd.worker.build import make_desk
from dopd.worker.loop import StepLoop
from dopd.worker.session import Started
from tests.support.fleet import FakeSession
from tests.support.modelled import H100_8B, ModelledEngine

TPOT_US = 30_000
PAUSES = Policy(StepMode.PAUSE_OR_MIX, tpot_us=TPOT_US)
NUM_RESIDENTS = 16
PROMPT_TOKENS = 24_000


class Worker:
    """One worker under a policy. times: of each slot, when it was given each token, in s."""

    def __init__(self, policy: Policy, timings: Timings, role: Role = Role.DECODE) -> None:
        self.now = 0.0
        self.engine = ModelledEngine(4096, timings, self.pass_s)
        ticket = Grant("w", 1, (), 0)
        self.desk = make_desk(self.engine, role, ticket, 64, 8192, clock=lambda: self.now)
        self.loop = StepLoop(self.desk, self.engine, clock=lambda: self.now)
        self.reports: list[pb.Report] = []
        self.desk.post(Started(FakeSession(1, self), step_policy=policy))  # type: ignore[arg-type]
        self.times: dict[int, list[float]] = defaultdict(list)

    def pass_s(self, seconds: float) -> None:
        self.now += seconds

    def open(self, slot: int, num_tokens: int, **fields: int) -> None:
        limits = Limits(5_000, ignore_eos=True)
        prompt = [1] * num_tokens
        sampling = SamplingParams(temperature=0.0)
        opened = Open(slot, num_tokens // 16 + 1, num_tokens, limits, Compute(prompt), sampling)
        for name, value in fields.items():
            object.__setattr__(opened, name, value)
        self.desk.post(Commands(1, [opened]))

    def turn(self) -> pb.Report:
        """One step; its report."""
        self.reports.clear()
        self.loop.turn()
        (report,) = self.reports[-1:]
        for slot in report.token_slots:
            self.times[slot].append(self.now)
        return report

    def worst_tpot_us(self, slots: Sequence[int]) -> float:
        """The worst mean time per token of any of them, at any token but the first few."""
        return max(
            1e6 * (time - times[0]) / number
            for times in (self.times[slot] for slot in slots)
            for number, time in enumerate(times)
            if number >= 4
        )

    def worst_gap_us(self, slots: Sequence[int]) -> float:
        """The longest wait for a token of any of them."""
        return max(
            1e6 * (after - before)
            for slot in slots
            for before, after in itertools.pairwise(self.times[slot])
        )


def with_residents(policy: Policy, timings: Timings = H100_8B) -> Worker:
    """A worker where some have decoded for a while."""
    worker = Worker(policy, timings)
    for slot in range(NUM_RESIDENTS):
        worker.open(slot, 200)
    for _ in range(50):
        worker.turn()
    return worker


def prefill(worker: Worker, limit: int = 2_000) -> None:
    """A long prompt comes, and is computed."""
    worker.open(99, PROMPT_TOKENS)
    for _ in range(limit):
        worker.turn()
        if worker.times[99]:
            return
    raise AssertionError("the prompt starves")


def test_residents_keep_their_target_while_a_long_prompt_is_paused_in() -> None:
    worker = with_residents(PAUSES)
    slots = range(NUM_RESIDENTS)
    prefill(worker)
    assert worker.desk.batcher.belief.steps_paused > 5
    assert worker.worst_tpot_us(slots) <= TPOT_US
    longest_us = max(us for work, us in worker.engine.took if work.decode_seqs)
    assert worker.worst_gap_us(slots) <= PAUSES.pause_max_us + longest_us + 1


def test_without_the_policy_the_same_prompt_breaks_their_target() -> None:
    worker = with_residents(Policy(StepMode.FILL, tpot_us=TPOT_US))
    prefill(worker)
    assert worker.worst_gap_us(range(NUM_RESIDENTS)) > 2 * PAUSES.pause_max_us


def test_a_tighter_target_of_one_is_kept_for_all() -> None:
    worker = Worker(PAUSES, H100_8B)
    for slot in range(NUM_RESIDENTS):
        worker.open(slot, 200, slo_tpot_us=15_000 if slot == 3 else 0)
    for _ in range(50):
        worker.turn()
    prefill(worker)
    assert worker.worst_tpot_us([3]) <= 15_000


@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_the_penalty_is_learnt_from_mixed_steps_and_reported(penalty: float) -> None:
    timings = dataclasses.replace(H100_8B, mixed_penalty_ratio=penalty)
    policy = Policy(StepMode.CHUNK, chunk_tokens=128, tpot_us=TPOT_US)
    worker = with_residents(policy, timings)
    prefill(worker)
    report = worker.turn()
    assert report.mixed_penalty_permille == pytest.approx(1000 * penalty, abs=5)
    assert report.steps_mixed >= PROMPT_TOKENS // 128


def test_what_costs_nothing_on_top_is_mixed_once_that_is_learnt() -> None:
    timings = dataclasses.replace(H100_8B, mixed_penalty_ratio=0.0)
    worker = with_residents(PAUSES, timings)
    worker.desk.batcher.belief.penalty = 0.0
    prefill(worker)
    belief = worker.desk.batcher.belief
    assert belief.steps_mixed > belief.steps_paused
    assert worker.worst_tpot_us(range(NUM_RESIDENTS)) <= TPOT_US


def test_reports_say_what_was_expected() -> None:
    worker = with_residents(PAUSES)
    report = worker.turn()
    decode_us = worker.engine.took[-1][1]
    assert report.step_expected_us == report.step_us == decode_us
    # The next one reads a token more of each.
    assert decode_us <= report.decode_step_us <= decode_us + 10


def test_a_decode_worker_without_residents_cuts_slices_that_end_soon() -> None:
    worker = Worker(PAUSES, H100_8B)
    worker.open(99, PROMPT_TOKENS)
    for _ in range(3):
        worker.turn()
        assert worker.engine.took[-1][1] <= PAUSES.idle_slice_max_us
    other = Worker(PAUSES, H100_8B, Role.PREFILL)
    other.open(99, PROMPT_TOKENS)
    other.turn()
    assert other.engine.took[-1][0].prefill_tokens == 8192
