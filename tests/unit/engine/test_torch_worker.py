"""The torch engine behind a desk: what the scheduler does to pages shows in real answers."""

from __future__ import annotations

import dataclasses
from collections import defaultdict, deque
from pathlib import Path

import pytest

from dopd._gen.dopd.worker.v1 import worker_pb2 as pb
from dopd.engine.load import load
from dopd.engine.torch import TorchEngine
from dopd.types import (
    Commands,
    Compute,
    Endpoint,
    Grant,
    Limits,
    LogitAdjustments,
    Open,
    Role,
    Row,
    Sampled,
    SamplingParams,
)
from dopd.wire import AttachRequest
from dopd.worker.build import make_desk
from dopd.worker.loop import StepLoop
from dopd.worker.session import Started
from tests.support import reference

PROMPT = [(11 * n) % 300 for n in range(70)]
MAX_TOKENS = 16


class Session:
    """Keeps what is reported."""

    id = 1
    num_waiting = 0

    def __init__(self) -> None:
        self.reports: deque[pb.Report] = deque()

    def report(self, message: AttachRequest) -> None:
        self.reports.append(message.report)

    def check_lease(self) -> bool:
        return True

    def fail(self, reason: str) -> None:
        raise AssertionError(reason)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    folder: Path = tmp_path_factory.mktemp("tiny")
    reference.tiny_llama().save_pretrained(folder)
    return load(folder, dtype="float32", device="cpu", kv_memory="4MiB", name="tiny")


def answers(
    engine: TorchEngine, group: int, *, is_poisoning: bool = False
) -> tuple[dict[int, list[int]], int]:
    """Answers of four choices by slot, and the prompt tokens that they cost."""
    ticket = Grant("w", 1, (Endpoint("fake", ""),), 0)
    desk = make_desk(engine, Role.MIXED, ticket, 8, 32, is_poisoning=is_poisoning)
    loop, session = StepLoop(desk, engine), Session()
    desk.post(Started(session))
    opens = [
        Open(
            slot,
            6,
            len(PROMPT),
            Limits(MAX_TOKENS, ignore_eos=True),
            Compute(list(PROMPT), [], group),
            SamplingParams(temperature=0.7, seed=5, choice=slot),
            adjustments=LogitAdjustments(repetition_penalty=1.2, presence_penalty=0.5),
        )
        for slot in range(4)
    ]
    desk.post(Commands(1, list(opens)))
    tokens: dict[int, list[int]] = defaultdict(list)
    cost = 0
    while sum(len(answer) for answer in tokens.values()) < 4 * MAX_TOKENS:
        loop.turn()
        while session.reports:
            report = session.reports.popleft()
            assert all(reason == pb.CLOSE_REASON_LENGTH for reason in report.closed_reasons)
            cost += report.step_prefill_tokens
            for slot, token in zip(report.token_slots, report.tokens, strict=True):
                tokens[slot].append(token)
    assert desk.seats.pages.num_free == engine.pool.num_pages
    return dict(tokens), cost


def test_choices_on_shared_pages_answer_as_if_each_were_alone(engine: TorchEngine) -> None:
    alone, cost_alone = answers(engine, group=0)
    shared, cost_shared = answers(engine, group=3)
    assert shared == alone
    assert len({tuple(answer) for answer in alone.values()}) == 4
    assert (cost_alone, cost_shared) == (4 * len(PROMPT), len(PROMPT) + 3 * (len(PROMPT) % 16))


def test_no_step_reads_a_freed_page(engine: TorchEngine) -> None:
    """Freed pages are NaN (--kv-poison), also those of the run before: it would spread."""
    expected, _ = answers(engine, group=0)
    for group in (0, 3, 0):
        assert answers(engine, group, is_poisoning=True)[0] == expected
    pages = range(engine.pool.num_pages)
    assert any(page.isnan().all() for page in engine.pool.tensor)
    engine.pool.fill(pages, 0)


def test_a_step_that_reads_a_poisoned_page_fails_its_row_alone(engine: TorchEngine) -> None:
    greedy = SamplingParams(temperature=0.0)
    rows = [Row(slot, [5], 16, [2 * slot, 2 * slot + 1], greedy, 1) for slot in range(2)]
    engine.pool.fill([0], 0xFF)
    stale, sound = engine.step(rows)
    engine.pool.fill(range(4), 0)
    assert "not finite" in str(stale)
    assert isinstance(sound, Sampled)


def answer_of(engine: TorchEngine, *opens: Open) -> list[tuple[list[int], int]]:
    """Tokens, and positions with log probabilities, of requests that follow each other."""
    desk = make_desk(engine, Role.MIXED, Grant("w", 1, (), 0), 8, 32)
    loop, session = StepLoop(desk, engine), Session()
    desk.post(Started(session))
    told = []
    for one in opens:
        desk.post(Commands(1, [one]))
        loop.turn()
        while desk.seats.by_slot:
            loop.turn()
        reports = [session.reports.popleft() for _ in range(len(session.reports))]
        tokens = [token for report in reports for token in report.tokens]
        told.append((tokens, sum(len(report.logprobs.chosen) for report in reports)))
    return told


def test_a_slot_carries_no_state_to_its_next_request(engine: TorchEngine) -> None:
    """Rule 13 of faults.md: masks, penalties, bias, seed, log probabilities, limits."""
    busy = Open(
        3,
        6,
        len(PROMPT),
        Limits(MAX_TOKENS, min_tokens=9, stop_token_ids=frozenset(range(0, 300, 7))),
        Compute(list(PROMPT)),
        SamplingParams(temperature=1.3, top_k=40, seed=5, top_logprobs=3),
        adjustments=LogitAdjustments(1.0, 1.0, 1.5, bias=((9, 5.0), (11, -100.0))),
        prompt_logprobs=2,
    )
    plain = Open(3, 6, 40, Limits(MAX_TOKENS, ignore_eos=True), Compute(PROMPT[5:45]))
    sampled = dataclasses.replace(plain, sampling=SamplingParams(temperature=0.9, seed=8))
    alone = [answer_of(engine, one)[0] for one in (plain, sampled, busy)]
    assert answer_of(engine, busy, plain, busy, sampled, busy) == [
        alone[2], alone[0], alone[2], alone[1], alone[2]
    ]  # fmt: skip
    assert alone[0][1] == 0 < alone[2][1]
