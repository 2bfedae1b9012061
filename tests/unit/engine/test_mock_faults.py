"""The mock's faults strike the marked sequence, in the step that computes its marker."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from dopd.engine.mock import MockEngine
from dopd.engine.mock_faults import EXIT_CODE, LIE_TOKEN, SLOW_STEP_US, FaultyEngine, parse_fault
from dopd.errors import ConfigError
from dopd.types import Result, Row, Sampled, SamplingParams
from tests.support.scripted_router import ScriptedRouter, open_compute
from tests.support.workers import expected_answer, running
from tests.unit.worker.test_process import WAIT_S, process

GREEDY = SamplingParams(temperature=0.0)
MARKED = list(b"say bad words")
PLAIN = list(b"say good word")


def engine(*faults: str, slept: list[float] | None = None) -> FaultyEngine:
    sleep = (slept if slept is not None else []).append
    return FaultyEngine([parse_fault(text) for text in faults], 64, sleep=sleep)


def rows(*prompts: Sequence[int]) -> list[Row]:
    return [Row(slot, list(p), 0, [slot], GREEDY, 0) for slot, p in enumerate(prompts)]


def token(result: Result) -> int:
    assert isinstance(result, Sampled)
    return result.token


@pytest.mark.parametrize("text", ["bad", "bad=", "exits=x", "=x"])
def test_a_fault_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not KIND=MARKER"):
        parse_fault(text)


def test_raise_fails_the_marked_row_alone() -> None:
    marked, plain = engine("raise=bad").step(rows(MARKED, PLAIN))
    assert isinstance(marked, Exception)
    assert token(plain) == expected_answer(PLAIN, 1)[0]


def test_lie_and_wrong_change_the_token_of_the_marked_row_alone() -> None:
    lie, wrong, right = engine("lie=bad", "wrong=good").step(rows(MARKED, PLAIN, b"neither"))
    assert token(lie) == LIE_TOKEN
    assert token(wrong) == expected_answer(PLAIN, 1)[0] ^ 1
    assert token(right) == expected_answer(list(b"neither"), 1)[0]


def test_slow_lasts_as_long_as_the_sequence_and_no_longer() -> None:
    slept: list[float] = []
    one = engine("slow=bad", slept=slept)
    (row,) = rows(MARKED)
    one.step([row])
    row.tokens, row.start, row.pos = [50], len(MARKED), 1
    one.step([row])
    assert slept == 2 * [9 * SLOW_STEP_US / 1e6]
    one.step(rows(PLAIN))
    one.step([Row(0, [50], len(MARKED), [9], GREEDY, 1)])
    assert len(slept) == 2, "the slot's next sequences are as fast as any"


def test_a_marker_is_found_across_chunks_and_in_the_answer() -> None:
    one = engine("raise=bad")
    (row,) = rows(MARKED)
    for start, end in ((0, 5), (5, 6)):
        row.tokens, row.start = MARKED[start:end], start
        assert token(one.step([row])[0]) >= 0
    row.tokens, row.start = MARKED[6:7], 6
    assert isinstance(one.step([row])[0], Exception)
    answer = "".join(map(chr, expected_answer(PLAIN, 12)))
    with (
        ScriptedRouter() as router,
        running("w", router.address, engine=engine(f"raise={answer[4:9]}")),
    ):
        w = router.worker("w")
        w.send(open_compute(1, PLAIN, 12), open_compute(2, MARKED, 12))
        router.wait_for(lambda: len(w.closed) == 2, "closed")
        assert w.closed == {1: "error", 2: "length"}
        # The marker's last token is the ninth: the step that computes it draws no tenth.
        assert w.tokens[1] == expected_answer(PLAIN, 9)
        assert w.tokens[2] == expected_answer(MARKED, 12)


def test_hang_never_ends() -> None:
    def step() -> None:
        engine("hang=bad").step(rows(MARKED))

    thread = threading.Thread(target=step, daemon=True)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()


def test_an_unmarked_engine_computes_as_the_mock() -> None:
    told = engine("exit=zzz", "hang=zzz", "raise=zzz").step(rows(MARKED, PLAIN))
    assert list(map(token, told)) == list(map(token, MockEngine(64).step(rows(MARKED, PLAIN))))


def test_exit_ends_the_process_in_its_step() -> None:
    with (
        ScriptedRouter() as router,
        process(router.address, "--mock-fault", "raise=x", "--mock-fault", "exit=bad") as worker,
    ):
        w = router.worker("w")
        w.send(open_compute(1, PLAIN, 3))
        router.wait_for(lambda: 1 in w.closed, "closed")
        w.send(open_compute(1, MARKED, 3))
        assert worker.wait(WAIT_S) == EXIT_CODE
