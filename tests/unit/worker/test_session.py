"""Sessions: lease, loss, refusal, stale commands, protocol errors."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from dopd import wire
from dopd._gen.dopd.worker.v1 import logprobs_pb2
from dopd._gen.dopd.worker.v1 import worker_pb2 as pb
from dopd.worker import attach
from tests.support.scripted_router import ScriptedRouter, close, open_compute, open_import
from tests.support.workers import POLL_S, expected_answer, running

PROMPT = list(range(40))


def open_endless(slot: int) -> pb.Command:
    """A seat that steps until it is closed."""
    return open_compute(slot, PROMPT, 60_000, ignore_eos=True)


def test_a_silent_router_loses_the_worker_and_every_seat_is_closed() -> None:
    """The seat is an import, which does not step: nothing but the lease can end this stream."""
    with ScriptedRouter(lease_ms=1_000) as router, running("w", router.address) as worker:
        first = router.worker("w")
        first.send(open_import(1, 40, 100))
        router.wait_for(lambda: 1 in first.opened, "opened")
        router.is_silent = True
        router.wait_for(lambda: first.is_gone, "the end of the lease")
        router.is_silent = False
        worker.wait_for(lambda: not worker.desk.seats.by_slot, "empty table")
        assert worker.desk.seats.pages.num_free == worker.desk.seats.pages.num_pages
        second = router.worker("w")
        assert second.session != first.session


def test_reports_say_for_how_long_the_router_was_not_heard() -> None:
    with ScriptedRouter(lease_ms=60_000) as router, running("w", router.address):
        w = router.worker("w")
        router.is_silent = True
        router.wait_for(lambda: w.reports and w.last.heard_ms > 300, "a report that complains")
        router.is_silent = False
        router.wait_for(lambda: w.last.heard_ms < 200, "a report that does not")


def test_a_router_that_does_not_even_read_loses_the_worker_too() -> None:
    """Reports fill the stream's window until gRPC asks for no more, and then no step makes any."""
    with ScriptedRouter(lease_ms=2000) as router, running("w", router.address) as worker:
        first = router.worker("w")
        first.send(open_import(1, 40, 100))
        router.wait_for(lambda: 1 in first.opened, "opened")
        router.is_deaf = router.is_silent = True
        stream = worker.attach._stream
        assert stream is not None
        large = pb.AttachRequest(
            report=pb.Report(logprobs=logprobs_pb2.Logprobs(chosen=[0.5] * 25_000))
        )
        while stream.num_waiting < 8:
            stream.report(large)
            time.sleep(POLL_S)
        worker.wait_for(lambda: not worker.desk.seats.by_slot, "empty table")
        router.is_deaf = router.is_silent = False
        router.wait_for(lambda: first.is_gone, "the end of the stream")
        assert router.worker("w").session != first.session


def test_a_step_loop_that_outruns_its_sender_waits_for_it() -> None:
    """Thousands of instant steps: the session lives, and every token is reported."""
    with ScriptedRouter() as router, running("w", router.address):
        w = router.worker("w")
        w.send(open_compute(1, PROMPT, 5_000, ignore_eos=True))
        router.wait_for(lambda: 1 in w.closed, "closed")
        assert len(w.tokens[1]) == 5_000
        assert len(router.attached) == 1


def test_a_broken_stream_closes_every_seat_and_the_worker_dials_again() -> None:
    with ScriptedRouter() as router, running("w", router.address) as worker:
        first = router.worker("w")
        first.send(open_endless(1))
        router.wait_for(lambda: 1 in first.tokens, "a token")
        first.hang_up()
        worker.wait_for(lambda: not worker.desk.seats.by_slot, "empty table")
        router.wait_for(lambda: first.is_gone, "the end of the stream")
        second = router.worker("w")
        assert second.hello.incarnation == first.hello.incarnation
        second.send(open_compute(1, PROMPT, 5))
        router.wait_for(lambda: 1 in second.closed, "closed")
        assert second.tokens[1] == expected_answer(PROMPT, 5)


def test_no_old_session_accepted() -> None:
    with ScriptedRouter() as router, running("w", router.address):
        w = router.worker("w")
        w.send_as(w.session + 1000, open_compute(1, PROMPT, 5), open_compute(2, PROMPT, 5))
        w.send(open_compute(2, PROMPT, 3))
        router.wait_for(lambda: 2 in w.closed, "closed")
        assert len(w.tokens[2]) == 3
        assert 1 not in w.closed
        assert {report.session for report in w.reports} == {w.session}


def test_a_slot_in_use_breaks_the_stream() -> None:
    with ScriptedRouter() as router, running("w", router.address) as worker:
        first = router.worker("w")
        first.send(open_compute(1, PROMPT, 5), open_compute(1, PROMPT, 5))
        router.wait_for(lambda: first.is_gone, "the end of the stream")
        router.worker("w")
        assert not worker.desk.seats.by_slot


def test_a_command_of_no_kind_breaks_the_stream() -> None:
    with ScriptedRouter() as router, running("w", router.address):
        first = router.worker("w")
        first.send(pb.Command())
        router.wait_for(lambda: first.is_gone, "the end of the stream")
        router.worker("w")


def test_a_second_welcome_breaks_the_stream() -> None:
    with ScriptedRouter() as router, running("w", router.address):
        first = router.worker("w")
        welcome = pb.Welcome(session=first.session, lease_ms=1000, report_interval_ms=100)
        first.outgoing.put(pb.AttachResponse(welcome=welcome))
        router.wait_for(lambda: first.is_gone, "the end of the stream")
        router.worker("w")


def test_closed_slots_and_unknown_slots_are_ignored_without_answer() -> None:
    with ScriptedRouter() as router, running("w", router.address):
        w = router.worker("w")
        w.send(close(1), pb.Command(send=pb.Send(slot=2)), open_compute(3, PROMPT, 2), close(3))
        router.wait_for(lambda: 3 in w.closed, "closed")
        w.send(close(3), open_compute(4, PROMPT, 1))
        router.wait_for(lambda: 4 in w.closed, "closed")
        assert w.closed == {3: "asked", 4: "length"}


def test_a_refusal_for_good_ends_the_worker() -> None:
    refusal = pb.Refusal(message="page size 16, here 32")
    with (
        ScriptedRouter(refusal=refusal) as router,
        running("w", router.address) as worker,
    ):
        worker.thread.join(10)
        assert worker.attach.refusal == "page size 16, here 32"


def test_a_wrong_join_token_ends_the_worker() -> None:
    with ScriptedRouter() as router, running("w", router.address, token="wrong") as worker:
        worker.thread.join(10)
        assert worker.attach.refusal == "unauthenticated: wrong join token"


def test_a_refusal_for_now_is_asked_again() -> None:
    refusal = pb.Refusal(message="4096 workers are here", retry=True)
    with ScriptedRouter(refusal=refusal) as router, running("w", router.address):
        router.wait_for(lambda: router.num_refused >= 2, "two refusals")
        router.refusal = None
        router.worker("w")


def test_a_router_that_is_back_is_found_within_two_seconds() -> None:
    assert attach.CONNECT_S + attach.BACKOFF_MAX_S < 2
    with ScriptedRouter() as router:
        address = router.address
        with running("w", address):
            router.worker("w")
            router.__exit__()
            with ScriptedRouter(address=address) as second:
                second.worker("w")


def test_a_router_that_does_not_answer_is_given_up_and_dialled_again() -> None:
    """The listener accepts and says nothing, as behind a broken network: gRPC waits 20 s for it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with running("w", address):
            begun = time.monotonic()
            tries = [silent.accept()[0] for _ in range(3)]
            silent.close()
            for one in tries:
                one.close()
            with ScriptedRouter(address=address) as router:
                router.worker("w")
            assert time.monotonic() - begun < 15


def test_what_nobody_foresaw_costs_a_stream_and_not_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    response, failures = wire.response, iter([ZeroDivisionError("unforeseen")])

    def failing(message: Any) -> Any:
        for error in failures:
            raise error
        return response(message)

    monkeypatch.setattr(wire, "response", failing)
    with ScriptedRouter() as router, running("w", router.address):
        router.wait_for(lambda: len(router.attached) == 2, "a second stream")
        w = router.attached[1]
        w.send(open_compute(1, PROMPT, 5))
        router.wait_for(lambda: 1 in w.closed, "closed")
        assert w.tokens[1] == expected_answer(PROMPT, 5)


def test_a_word_that_comes_after_the_lease_does_not_renew_it() -> None:
    """After a freeze, what the router said long ago is read first: the session is over all the
    same, whichever thread looks first."""
    stream = attach.Stream(None, None)  # type: ignore[arg-type]
    assert stream.heard()
    stream._heard_at -= attach.WELCOME_S + 1
    assert not stream.heard()
    assert not stream.check_lease()
