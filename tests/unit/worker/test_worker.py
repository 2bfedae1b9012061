"""One worker against a scripted router: a real stream, the mock engine."""

from __future__ import annotations

from collections.abc import Sequence

from dopd._gen.dopd.worker.v1 import worker_pb2 as pb
from dopd.engine.mock import MockEngine
from dopd.types import Result, Row
from tests.support.scripted_router import ScriptedRouter, open_compute, set_role
from tests.support.workers import GatedEngine, expected_answer, running

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


class FailingEngine(MockEngine):
    """Fails for some slots, or altogether."""

    def __init__(self, slots: set[int], device_error: Exception | None = None) -> None:
        super().__init__(4096)
        self._slots = slots
        self._device_error = device_error

    def step(self, rows: Sequence[Row]) -> list[Result]:
        if self._device_error is not None:
            raise self._device_error
        results = super().step(rows)
        return [
            ValueError(f"slot {row.slot} is poison") if row.slot in self._slots else result
            for row, result in zip(rows, results, strict=True)
        ]


def test_hello_says_what_the_worker_is() -> None:
    with ScriptedRouter() as router, running("w", router.address, max_num_seqs=7):
        hello = router.worker("w").hello
        assert (hello.model, hello.vocab_size, hello.max_num_seqs) == ("mock", 258, 7)
        assert (hello.pages_total, hello.geometry.page_bytes) == (4096, 128)
        assert hello.version == "0.1.0"
        assert list(hello.transports) == ["shm", "tcp"]
        assert hello.data_address.startswith("127.0.0.1:")


def test_a_replay_goes_on_where_the_client_is() -> None:
    expected = expected_answer(PROMPT, 20)
    with ScriptedRouter() as router, running("w", router.address):
        w = router.worker("w")
        w.send(open_compute(1, PROMPT, 20, answer=expected[:13]))
        router.wait_for(lambda: 1 in w.closed, "closed")
        assert w.tokens[1] == expected[13:]


def test_many_sequences_get_one_report_a_step() -> None:
    prompts = [[i, i + 1, i + 2] for i in range(40)]
    with ScriptedRouter() as router, running("w", router.address):
        w = router.worker("w")
        w.send(*[open_compute(i, prompt, 10) for i, prompt in enumerate(prompts)])
        router.wait_for(lambda: len(w.closed) == 40, "closed")
        assert all(w.tokens[i] == expected_answer(prompts[i], 10) for i in range(40))
        assert sum(bool(report.tokens) for report in w.reports) == 10
        steps = [report.step for report in w.reports if report.tokens]
        assert steps == sorted(set(steps))


def test_a_long_prompt_is_computed_in_chunks() -> None:
    with ScriptedRouter() as router, running("w", router.address, max_batch_tokens=256):
        w = router.worker("w")
        prompt = PROMPT * 6
        w.send(open_compute(1, prompt, 2))
        router.wait_for(lambda: 1 in w.closed, "closed")
        chunks = [r.step_prefill_tokens for r in w.reports if r.step_us]
        assert chunks == [256, 256, 88, 0]
        assert w.tokens[1] == expected_answer(prompt, 2)


def test_log_probabilities_come_for_those_who_asked() -> None:
    with ScriptedRouter() as router, running("w", router.address):
        w = router.worker("w")
        asking, silent = open_compute(1, PROMPT, 1), open_compute(0, PROMPT, 1)
        asking.open.sampling.top_logprobs = 2
        w.send(silent, asking)
        router.wait_for(lambda: len(w.closed) == 2, "closed")
        logprobs = next(r.logprobs for r in w.reports if r.tokens)
        assert list(logprobs.token_index) == [1]
        assert list(logprobs.top_lens) == [2]
        token = w.tokens[1][0]
        assert list(logprobs.top_tokens) == [token, 32 + (token - 32 + 1) % 95]
        assert logprobs.top_logprobs[1] == logprobs.chosen[0] - 1


def test_a_row_that_fails_takes_no_other_with_it() -> None:
    with ScriptedRouter() as router, running("w", router.address, engine=FailingEngine({2})):
        w = router.worker("w")
        w.send(*[open_compute(slot, PROMPT, 5) for slot in (1, 2, 3)])
        router.wait_for(lambda: len(w.closed) == 3, "closed")
        assert w.closed == {1: "length", 2: "error", 3: "length"}
        assert w.messages[2] == "ValueError under this request alone; the worker's log has it"
        assert w.tokens[1] == w.tokens[3] == expected_answer(PROMPT, 5)


def test_a_device_that_fails_ends_the_step_loop() -> None:
    engine = FailingEngine(set(), RuntimeError("device lost"))
    with ScriptedRouter() as router, running("w", router.address, engine=engine) as worker:
        w = router.worker("w")
        w.send(open_compute(1, PROMPT, 5))
        router.wait_for(lambda: w.is_gone, "the end of the stream")
        assert str(worker.failure) == "device lost"


def test_heartbeats_go_on_while_a_step_runs() -> None:
    engine = GatedEngine()
    with ScriptedRouter() as router, running("w", router.address, engine=engine):
        w = router.worker("w")
        w.send(open_compute(1, PROMPT, 1))

        def is_in_step() -> bool:
            return sum(r.running == 1 and r.step == 0 for r in w.reports) >= 3

        router.wait_for(is_in_step, "three heartbeats inside of a step")
        assert w.last.prefill_tokens_queued == len(PROMPT)
        engine.allow(1)
        router.wait_for(lambda: 1 in w.closed, "closed")


def test_a_full_worker_refuses_and_says_why() -> None:
    with ScriptedRouter() as router, running("w", router.address, num_pages=10):
        w = router.worker("w")
        w.send(open_compute(1, PROMPT, 200))
        router.wait_for(lambda: 1 in w.closed, "closed")
        assert (w.closed[1], w.messages[1]) == ("refused", "19 pages asked, 10 free")
        assert [list(r.closed_retry_ms) for r in w.reports if r.closed_slots] == [[20]]


def test_role_epoch_never_falls() -> None:
    with ScriptedRouter() as router, running("w", router.address):
        w = router.worker("w")
        w.send(set_role(pb.ROLE_DECODE, 5))
        router.wait_for(lambda: w.reports and w.last.role_epoch == 5, "epoch 5")
        w.send(set_role(pb.ROLE_PREFILL, 5), set_role(pb.ROLE_PREFILL, 4))
        w.send(open_compute(1, [1], 1))
        router.wait_for(lambda: 1 in w.closed, "closed")
        assert (w.last.role, w.last.role_epoch) == (pb.ROLE_DECODE, 5)


def test_a_drained_worker_refuses_finishes_what_it_has_and_ends() -> None:
    engine = GatedEngine()
    with ScriptedRouter() as router, running("w", router.address, engine=engine) as worker:
        w = router.worker("w")
        w.send(open_compute(1, PROMPT, 3))
        w.send(set_role(pb.ROLE_MIXED, 1, drain=True), open_compute(2, PROMPT, 3))
        engine.allow(3)
        router.wait_for(lambda: w.is_gone, "the end of the stream")
        assert w.closed == {1: "length", 2: "refused"}
        assert w.tokens[1] == expected_answer(PROMPT, 3)
        assert worker.failure is None


def test_stop_tokens_and_eos_end_an_answer_with_their_token() -> None:
    expected = expected_answer(PROMPT, 400)
    stop = expected[5]
    with ScriptedRouter() as router, running("w", router.address):
        w = router.worker("w")
        w.send(
            open_compute(1, PROMPT, 400, stop_token_ids=[stop]),
            open_compute(2, PROMPT, 400),
            open_compute(3, PROMPT, 400, ignore_eos=True),
        )
        router.wait_for(lambda: len(w.closed) == 3, "closed")
        assert w.closed == {1: "stop", 2: "stop", 3: "length"}
        assert w.tokens[1] == expected[: expected.index(stop) + 1]
        assert w.tokens[2] == expected[: expected.index(257) + 1]
        assert w.tokens[3] == expected


def test_seeded_draws_depend_on_seed_choice_and_position_only() -> None:
    """A replay in the middle draws what an undisturbed answer would have drawn."""
    command = open_compute(1, PROMPT, 12)
    command.open.sampling.MergeFrom(pb.Sampling(temperature=0.7, seed=11, choice=3))
    with ScriptedRouter() as router, running("w", router.address):
        w = router.worker("w")
        w.send(command)
        router.wait_for(lambda: 1 in w.closed, "closed")
        command.open.slot = 2
        command.open.compute.answer.extend(w.tokens[1][:7])
        w.send(command)
        router.wait_for(lambda: 2 in w.closed, "closed")
        assert w.tokens[2] == w.tokens[1][7:]
        assert w.tokens[1] != expected_answer(PROMPT, 12)
