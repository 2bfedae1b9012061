"""Rows A10 and A13 of the matrix: who pays for a request that harms workers, or for a lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.test_bad_workers import POISON, mixed_fleet
from tests.support.faults import scenes
from tests.support.faults.traffic import Ask, Verdict


@pytest.mark.timeout(120)
def test_a10_a_request_that_ends_two_workers_gets_no_third(tmp_path: Path) -> None:
    one = mixed_fleet(tmp_path, 3, "exit")
    try:
        one.begin()
        others = scenes.mixed_asks(10, 24, tokens_min=200, tokens_max=300)
        with one.ask(*others, clients=24) as traffic:
            scenes.when_busy(one.nodes["m0"], seats=1)
            with one.ask(Ask(POISON, 5), clients=1) as poison:
                found = poison.finish()
            results = traffic.finish()
        alive = [node for node in one.nodes.values() if node.is_running]
        assert len(alive) == 1
        assert {code for _, code in found.errors} == {"poison_suspect"}
        results.check(at_least=24)
        one.settled()
    finally:
        one.close()


def test_a13_a_worker_that_lies_about_a_token_fails_that_request_alone(tmp_path: Path) -> None:
    one = mixed_fleet(tmp_path, 2, "lie")
    try:
        one.begin()
        with one.ask(*scenes.mixed_asks(13, 16), clients=16) as traffic:
            with one.ask(Ask(POISON, 5), clients=1) as poison:
                found = poison.finish()
            results = traffic.finish()
        results.check(at_least=16)
        assert len(found.of(Verdict.ERROR)) == 1, [str(found.all[0])]
        one.settled()
    finally:
        one.close()
