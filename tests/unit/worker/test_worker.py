"""Workers against a scripted router: real streams, real data links, the mock engine."""

from __future__ import annotations

from dopd.sched.events import State
from tests.support.scripted_router import ScriptedRouter, close, open_compute, open_import, send
from tests.support.workers import GatedEngine, expected_answer, running, wait_for_state

PROMPT = [(7 * i) % 256 for i in range(100)]


def test_a_prompt_is_answered_and_the_seat_closed_with_its_last_token() -> None:
    with ScriptedRouter() as router, running("w", router.address):
        w = router.worker("w")
        w.send(open_compute(3, PROMPT, 20))
        router.wait_for(lambda: 3 in w.closed, "closed")
        assert w.tokens[3] == expected_answer(PROMPT, 20)
        assert w.closed[3] == "length"
        last = next(r for r in w.reports if 3 in r.closed_slots)
        assert list(last.token_slots) == [3]
        assert last.pages_free == w.hello.pages_total


def test_prefill_on_one_and_decode_on_another_answer_as_one() -> None:
    with (
        ScriptedRouter() as router,
        running("p", router.address, engine=(engine := GatedEngine())) as source,
        running("d", router.address) as destination,
    ):
        p, d = router.worker("p"), router.worker("d")
        d.send(open_import(4, len(PROMPT), 400))
        router.wait_for(lambda: 4 in d.opened, "opened")
        p.send(open_compute(7, PROMPT, 400), send(7, d.opened[4]))
        engine.allow(1)
        wait_for_state(source, 7, State.GOING)
        engine.allow(1000)
        router.wait_for(lambda: 4 in d.arrived, "arrived")
        p.send(close(7))
        router.wait_for(lambda: 4 in d.closed and 7 in p.closed, "both closed")
        pos, tail = d.arrived[4]
        expected = expected_answer(PROMPT, pos + len(d.tokens[4]))
        assert tail == expected[:pos]
        assert p.tokens[7] == expected[:pos], "the source steps no more once it is frozen"
        assert tail + d.tokens[4] == expected
        assert (p.closed[7], d.closed[4]) in {("asked", "length"), ("asked", "stop")}
        for worker in (source, destination):
            assert worker.desk.seats.pages.num_free == worker.desk.seats.pages.num_pages
