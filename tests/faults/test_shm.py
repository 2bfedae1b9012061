"""Rows B over shared memory: what a peer that stops, dies or is cut off leaves behind is nothing.

No proxy stands in a memory file: here processes are stopped and killed while pages are pulled.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults.fleet import Fleet
from tests.support.faults.traffic import Ask, Verdict
from tests.support.processes import wait_for

PAGE_BYTES = 128
POOL_PAGES = 64
# A pool holds two or three of these.
PROMPT_TOKENS = 300
ANSWER_TOKENS = 50


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two workers of each role with small pools that see each other's memory, and nothing else."""
    one = Fleet(tmp_path_factory.mktemp("shared"), "--kv-check", "full")
    try:
        for name, role in (
            ("p0", "prefill"),
            ("p1", "prefill"),
            ("d0", "decode"),
            ("d1", "decode"),
        ):
            memory = str(POOL_PAGES * PAGE_BYTES)
            one.add(name, role, "--kv-memory", memory, "--transports", "shm", is_direct=True)
        one.begin()
        yield one
    finally:
        one.close()


def some(count: int, seed: int, *, leaving: bool = False) -> list[Ask]:
    """Requests of some part of a pool; every third client goes away early, if `leaving`."""
    rng = random.Random(seed)
    return [
        Ask(
            tuple(
                rng.randrange(256) for _ in range(rng.randint(PROMPT_TOKENS // 3, PROMPT_TOKENS))
            ),
            ANSWER_TOKENS,
            seed=k,
            leave_after=rng.randint(1, 3) if leaving and k % 3 == 0 else None,
        )
        for k in range(count)
    ]


def memory_files(pid: int) -> list[Path]:
    """Descriptors of memory files of a process."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(entry).startswith("/memfd:"):
                found.append(entry)
        except OSError:
            continue
    return found


def test_b21_shared_memory_can_be_neither_cut_nor_written_by_others(shared: Fleet) -> None:
    """Not even by root: the file is sealed, so nobody gets SIGBUS and nobody's KV is changed."""
    before = shared.router.status()["handoffs_total"]
    with shared.ask(*some(8, 21), clients=4) as traffic:
        traffic.finish().check(at_least=8)
    assert shared.settled()["handoffs_total"] > before, "no page travelled"
    for name in ("p0", "d0"):
        files = memory_files(shared.nodes[name].pid)
        assert files, f"{name} shares no memory"
        for file in files:
            with pytest.raises(PermissionError):
                os.truncate(file, 0)
            with pytest.raises(PermissionError), file.open("r+b") as memory:
                memory.write(b"x")
    with shared.ask(*some(8, 22), clients=4) as traffic:
        traffic.finish().check(at_least=8)
    shared.settled()


@pytest.mark.parametrize("name", ["p0", "d0"])
@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=pytest.mark.soak)])
def test_b5_a_peer_that_stops_and_wakes_in_mid_copy(shared: Fleet, name: str, rounds: int) -> None:
    """A stopped process has read half a page or none: what it does when it wakes hurts nobody."""
    shared.forget()
    rng = random.Random(rounds)
    with shared.ask(*some(30 * rounds, 5, leaving=True), clients=8) as traffic:
        for _ in range(rounds):
            time.sleep(rng.uniform(0.05, 0.3))
            shared.nodes[name].signal(signal.SIGSTOP)
            # Past the fence timer and its ejection, within the lease.
            time.sleep(rng.uniform(0.6, 1.5))
            shared.nodes[name].signal(signal.SIGCONT)
        results = traffic.finish()
    results.check(at_least=15 * rounds)
    shared.settled()


@pytest.mark.parametrize("name", ["p0", "d0"])
@pytest.mark.parametrize("rounds", [2, pytest.param(50, marks=pytest.mark.soak)])
def test_b21_a_peer_that_dies_in_mid_copy_takes_its_memory_with_it(
    shared: Fleet, name: str, rounds: int
) -> None:
    """A mapping of a dead peer's pool is no pool of ours: its requests are computed again."""
    rng = random.Random(rounds)
    for number in range(rounds):
        shared.forget()
        with shared.ask(*some(20, number), clients=8) as traffic:
            time.sleep(rng.uniform(0.05, 0.4))
            shared.nodes[name].kill()
            results = traffic.finish()
        results.check(at_least=20)
        shared.settled()


def test_b13_a_router_that_dies_leaves_no_shared_page_behind(shared: Fleet) -> None:
    shared.forget()
    with shared.ask(*some(12, 13), clients=12) as traffic:
        wait_for(lambda: shared.router.status()["sequences_running"] > 2, "answers under way")
        shared.router.process.kill()
        results = traffic.finish()
    assert not results.of(Verdict.WRONG)
    shared.restart_router()
    shared.settled()
    with shared.ask(*some(8, 14), clients=4) as traffic:
        traffic.finish().check(at_least=8)
    shared.settled()
