"""Rows A1 to A7 and A15 of the matrix: worker processes that die, freeze, and come back."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults import scenes
from tests.support.faults.fleet import Fleet, all_travels, fleet
from tests.support.faults.proxy import Pipe, Plan, Way
from tests.support.faults.traffic import Ask
from tests.support.faults.watch import record
from tests.support.processes import wait_for


@pytest.fixture(scope="module")
def rust(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """No proxy: one in this process, beside 200 clients, delays heartbeats for too long."""
    with fleet(tmp_path_factory.mktemp("rust"), kind="rust", is_direct=True) as one:
        yield one


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Pages go over shm; a page that is used after its time shows as a wrong token."""
    one = Fleet(tmp_path_factory.mktemp("python"), "--kv-check", "full")
    try:
        for name, role in (
            ("p0", "prefill"),
            ("p1", "prefill"),
            ("d0", "decode"),
            ("d1", "decode"),
        ):
            one.add(name, role, "--debug-checks", "--kv-poison", is_direct=True)
        one.begin()
        yield one
    finally:
        one.close()


@pytest.mark.timeout(120)
def test_a1_a_decode_worker_dies_under_200_streams_and_no_byte_is_lost(rust: Fleet) -> None:
    found = scenes.death(rust, "d0", seed=1, streams=200)
    found.results.check(at_least=200)
    assert found.replays > 0
    record("A1", unrouted_s=found.unrouted_s, stall_s=found.results.longest_stall_s)


@pytest.mark.timeout(120)
def test_a1_the_same_with_python_workers(python: Fleet) -> None:
    found = scenes.death(python, "d1", seed=2, streams=40)
    found.results.check(at_least=40)
    assert found.replays > 0


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["rust", "python"])
def test_a1_fifty_rounds(tmp_path: Path, kind: str) -> None:
    with fleet(tmp_path, kind=kind, is_direct=True) as one:
        for seed in range(50):
            victim = scenes.decoders(one)[0]
            found = scenes.death(one, victim.name, seed, streams=200 if kind == "rust" else 40)
            found.results.check(at_least=40)
            record("A1", unrouted_s=found.unrouted_s, stall_s=found.results.longest_stall_s)
            one.replace(victim)


def long_asks(seed: int, count: int, length: int = scenes.LONG_PROMPT) -> list[Ask]:
    rng = random.Random(seed)
    return [Ask(tuple(rng.randrange(256) for _ in range(length)), 30) for _ in range(count)]


def test_a2_a_prefill_worker_dies_in_the_middle_of_a_prompt(python: Fleet) -> None:
    before = python.router.status()["replays_total"]
    # Of several steps, so that the router is told of its middle.
    length = 5 * scenes.LONG_PROMPT
    with python.ask(*long_asks(1, 4, length), clients=4) as traffic:
        victim = python.nodes["p0"]

        def is_computing() -> bool:
            status = victim.status()
            return status is not None and 0 < status["prefill_tokens_queued"] < length

        wait_for(is_computing, "the prompt is being computed")
        victim.kill()
        results = traffic.finish()
    results.check(at_least=4)
    assert python.router.status()["replays_total"] > before
    python.settled()
    record("A2", stall_s=results.longest_stall_s)


@pytest.mark.parametrize("victim", ["p0", "d0"])
def test_a3_a4_either_end_of_a_transfer_dies(tmp_path: Path, victim: str) -> None:
    """A slow link; death after another part of the pages each time."""
    die_in_transfer(tmp_path, victim, (500, 5_000, 12_000))


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["p0", "d0"])
def test_a3_a4_after_every_part_of_a_transfer(tmp_path: Path, victim: str) -> None:
    die_in_transfer(tmp_path, victim, tuple(range(200, 15_000, 600)))


def die_in_transfer(folder: Path, victim: str, shares: tuple[int, ...]) -> None:
    one = Fleet(folder, *all_travels(folder))
    try:
        one.add("p0", "prefill")
        one.add("d0", "decode")
        one.begin()
        for seed, share in enumerate(shares):
            reached = slow_link(one, share)
            with one.ask(*long_asks(seed, 2), clients=2) as traffic:
                assert reached.wait(30), "no pages on the way"
                one.nodes[victim].kill()
                one.nodes[victim].restart()
                results = traffic.finish()
            results.check(at_least=2)
            one.settled()
    finally:
        one.close()


def slow_link(one: Fleet, share: int) -> threading.Event:
    """The next data link to d0 is slow; set when so many bytes have passed it."""
    reached = threading.Event()

    def look(pipe: Pipe, data: bytes) -> bytes:
        if pipe.num_bytes + len(data) >= share:
            reached.set()
        return data

    data = one.nodes["d0"].data
    assert data is not None
    data.plan = lambda _: Plan(out=Way(bytes_per_s=30_000, filter=look))
    data.reset()
    return reached


def test_a5_a_worker_frozen_beyond_its_lease_is_replaced_and_comes_back(rust: Fleet) -> None:
    found = scenes.freeze(rust, "d0", seed=3, streams=60, hold_s=5)
    found.results.check(at_least=60)
    assert found.replays > 0
    assert found.ejected_s is not None
    assert found.ejected_s < 3, "ejected before its lease ended"
    assert found.gone_s is not None
    assert found.results.longest_stall_s < 5, "answers went on before it woke up"
    record("A5", ejected_s=found.ejected_s, gone_s=found.gone_s, back_s=found.back_s)


@pytest.mark.parametrize("kind", ["rust", "python"])
def test_a5_a_worker_frozen_within_its_lease_tells_no_token_twice(
    rust: Fleet, python: Fleet, kind: str
) -> None:
    one = {"rust": rust, "python": python}[kind]
    found = scenes.freeze(one, "d1", seed=4, streams=40, hold_s=1.8)
    found.results.check(at_least=40)
    assert found.replays > 0


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["rust", "python"])
def test_a5_a6_freezes_of_every_length(tmp_path: Path, kind: str) -> None:
    with fleet(tmp_path, kind=kind, is_direct=True) as one:
        for seed in range(24):
            hold_s = 0.3 * (1 + seed % 12)
            victim = scenes.decoders(one)[0]
            found = scenes.freeze(one, victim.name, 50 + seed, streams=40, hold_s=hold_s)
            found.results.check(at_least=40)
            record("A5", hold_s=hold_s, ejected_s=found.ejected_s, back_s=found.back_s)
            one.replace(victim)


def test_a6_a_short_freeze_is_nothing(rust: Fleet) -> None:
    found = scenes.freeze(rust, "d0", seed=5, streams=40, hold_s=0.3)
    found.results.check(at_least=40)
    assert (found.ejected_s, found.replays) == (None, 0)


def test_a7_without_decode_workers_prefill_workers_keep_what_they_began(tmp_path: Path) -> None:
    """Roles are labels: nobody waits for a role that is not there."""
    with fleet(tmp_path, prefill=1, decode=2, kind="rust") as one:
        with one.ask(*scenes.mixed_asks(6, 30), clients=30) as traffic:
            scenes.when_busy(one.nodes["d0"], seats=5)
            for name in ("d0", "d1"):
                one.nodes[name].kill()
            traffic.finish().check(at_least=30)
        one.settled()


def test_a7_without_any_worker_requests_wait_then_fail_clearly_then_work_again(
    tmp_path: Path,
) -> None:
    config = tmp_path / "dopd.toml"
    config.write_text("[limits]\nno_worker_wait_ms = 1500\n")
    words = ("--config", str(config))
    with fleet(tmp_path, *words, prefill=1, decode=1, kind="rust") as one:
        with one.ask(*scenes.mixed_asks(7, 20), clients=20) as traffic:
            scenes.when_busy(one.nodes["d0"], seats=3)
            for node in one.nodes.values():
                node.kill()
            results = traffic.finish()
        results.check(at_least=0, errors=frozenset({"no_worker", "worker_failed"}))
        begun_s = time.monotonic()
        with one.ask(Ask((1, 2, 3), 8), Ask((4, 5, 6), 8), clients=2) as traffic:
            results = traffic.finish()
        assert {code for _, code in results.errors} == {"no_worker"}
        assert time.monotonic() - begun_s > 1, "they waited for a worker"
        with one.ask(Ask((1, 2, 3), 8), Ask((4, 5, 6), 8), clients=2) as traffic:
            for node in one.nodes.values():
                node.restart()
            back_s = time.monotonic()
            results = traffic.finish()
        # Either in time for the waiting, or clearly too late; then all is well.
        results.check(at_least=0, errors=frozenset({"no_worker"}))
        one.settled()
        with one.ask(*scenes.mixed_asks(8, 10), clients=10) as traffic:
            traffic.finish().check(at_least=10)
        record("A7", after_return_s=time.monotonic() - back_s)


def test_a15_a_worker_is_back_on_its_address_at_once(python: Fleet) -> None:
    """Grants and links of its old life are worth nothing to the new one of the same name."""
    before = python.router.status()["replays_total"]
    with python.ask(*scenes.mixed_asks(9, 40), clients=40) as traffic:
        node = python.nodes["d0"]
        scenes.when_busy(node, seats=5, steps=5)
        node.signal(signal.SIGKILL)
        node.restart()
        traffic.finish().check(at_least=40)
    assert python.router.status()["replays_total"] > before
    python.settled()
