"""The fault runner sees what it is there to see: traffic, books, states, and its own judgement."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.support import mock_model
from tests.support.faults.fleet import Fleet, all_travels, fleet
from tests.support.faults.traffic import Ask, Outcome, Verdict
from tests.support.faults.watch import GONE


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with fleet(folder, *all_travels(folder), prefill=1, decode=1) as one:
        yield one


def test_without_faults_every_answer_is_right_and_moves(calm: Fleet) -> None:
    with calm.traffic(seed=1) as traffic:
        time.sleep(1)
        results = traffic.stop()
    results.check(at_least=20)
    assert {one.protocol for one in results.all} == {"http", "grpc"}
    assert calm.settled()["handoffs_total"] > 0
    assert calm.watch.looks > 10
    data = calm.nodes["d0"].data
    assert data is not None and data.begun_s, "pages went through the proxy"


def test_a_client_that_leaves_is_no_failure(calm: Fleet) -> None:
    wanted = [Ask((k,), 400, leave_after=k + 1) for k in range(8)]
    with calm.ask(*wanted) as traffic:
        results = traffic.finish()
    assert len(results.of(Verdict.LEFT)) == 8
    results.check(at_least=0)
    calm.settled()


def test_a_killed_worker_is_seen_to_go_and_to_come_back(calm: Fleet) -> None:
    node = calm.nodes["d0"]
    at_s = node.signal(signal.SIGKILL)
    gone_s = calm.watch.wait("d0", lambda state: state == GONE, at_s)
    calm.settled()
    assert calm.watch.wait("d0", lambda state: state == "ready", gone_s) > gone_s


RIGHT = mock_model.text(mock_model.answer([1], 5, ignore_eos=True))


@pytest.mark.parametrize(
    ("text", "finish_reason", "usage", "verdict"),
    [
        (RIGHT, "length", (1, 5), Verdict.RIGHT),
        (RIGHT[:-1], "length", (1, 5), Verdict.WRONG),
        (RIGHT + RIGHT[-1], "length", (1, 5), Verdict.WRONG),
        (RIGHT, None, None, Verdict.WRONG),
        (RIGHT, "stop", (1, 5), Verdict.WRONG),
        (RIGHT, "length", (1, 4), Verdict.WRONG),
    ],
)
def test_what_a_client_cannot_know_to_be_wrong_is_wrong(
    text: str, finish_reason: str | None, usage: tuple[int, int] | None, verdict: Verdict
) -> None:
    outcome = Outcome(Ask((1,), 5), "http")
    outcome.got(text)
    outcome.finish_reason, outcome.usage = finish_reason, usage
    outcome.judge()
    assert outcome.verdict is verdict


def test_foreign_text_before_an_error_is_wrong() -> None:
    for text, verdict in ((RIGHT[:2], Verdict.ERROR), ("~" + RIGHT, Verdict.WRONG)):
        outcome = Outcome(Ask((1,), 5), "http")
        outcome.got(text)
        outcome.failed("503", "no_worker", "")
        outcome.judge()
        assert outcome.verdict is verdict


def test_a_router_that_dies_breaks_its_streams_and_comes_back_on_its_ports(calm: Fleet) -> None:
    with calm.traffic(seed=2) as traffic:
        time.sleep(0.3)
        calm.router.process.kill()
        before = calm.router.http
        calm.restart_router()
        assert calm.router.http == before
        results = traffic.stop()
    assert not results.of(Verdict.WRONG)
    calm.settled()
    with calm.traffic(seed=3, clients=2) as traffic:
        time.sleep(0.3)
        traffic.stop().check()
    calm.settled()
