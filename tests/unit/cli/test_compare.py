"""Two servers get the same load, and their ratio says so."""

from __future__ import annotations

import pytest

from dopd.cli.bench import compare, parse
from dopd.cli.bench.arrivals import Arrival
from dopd.cli.bench.load import Result, Sample, Target
from dopd.cli.http import Server

PLAN = [Arrival(float(second), 10, 4) for second in range(10)]


def test_both_get_every_part_and_take_turns_in_being_first() -> None:
    found = compare.turns(PLAN, 3)
    assert [index for index, _ in found] == [0, 1, 1, 0, 0, 1]
    for server in (0, 1):
        parts = [part for index, part in found if index == server]
        assert [len(part) for part in parts] == [3, 3, 4]
        assert all(part[0].at_s == 0 for part in parts)
        assert [a.at_s for part in parts for a in part] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 3]


def test_there_are_no_more_rounds_than_requests() -> None:
    assert len(compare.turns(PLAN[:2], 5)) == 4


def result(ttft_s: float, requests: int = 2) -> Result:
    samples = [
        Sample(PLAN[0], 0.0, 0.0, ttft_s, ttft_s + 0.3, tokens=4, is_complete=True)
        for _ in range(requests)
    ]
    return Result(samples, start_s=5.0, end_s=7.0)


TARGETS = [Target(Server(f"http://{name}:1"), "m", f"{name}:1") for name in "ab"]
ROUNDS = {"a:1": [result(0.1), result(0.2)], "b:1": [result(0.2), result(0.2)]}


def test_breaks_between_turns_do_not_count() -> None:
    whole = compare.joined(ROUNDS["a:1"])
    assert len(whole.samples) == 4
    assert whole.end_s - whole.start_s == 4.0


def test_the_ratio_has_its_range_over_the_rounds() -> None:
    found = compare.document(parse([]), TARGETS, ROUNDS)
    assert found["ratios"]["ttft_ms.mean"] == pytest.approx(
        {"whole": 0.75, "least": 0.5, "greatest": 1.0}
    )
    assert found["ratios"]["requests_per_s"]["whole"] == 1.0
    text = " ".join(compare.render(found).split())
    assert "TTFT mean ms 150.00 200.00 0.75 0.50 to 1.00 TTFT p50 ms" in text


def test_a_server_that_answered_nothing_has_no_ratio() -> None:
    failed = Result([Sample(PLAN[0], 0.0, error="no", error_code="500")], 0.0, 1.0)
    rounds = {"a:1": [failed], "b:1": [result(0.1)]}
    found = compare.document(parse([]), TARGETS, rounds)
    assert found["ratios"]["ttft_ms.p50"] is None
    assert "a:1: 1 x 500: no" in compare.render(found)


def test_times_of_requests_count_from_the_first_turn() -> None:
    whole = compare.joined([result(0.1), result(0.2)])
    assert (whole.start_s, whole.end_s) == (5.0, 9.0)
    assert compare.joined([]).samples == []
