"""Row A9 of the matrix: a client goes away at every point of its request's life.

Everything it held is free again at the router and at both workers, and its neighbours notice
nothing. How long that takes is recorded; a test judges only that it happens.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import mock_model
from tests.support.faults import scenes
from tests.support.faults.fleet import Fleet, all_travels, fleet
from tests.support.faults.proxy import Pipe, Plan, Way
from tests.support.faults.traffic import Ask, Verdict
from tests.support.faults.watch import record
from tests.support.processes import wait_for


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Workers of four seats, so that a fifth request waits; every prompt is computed at p0."""
    folder = tmp_path_factory.mktemp("small")
    one = Fleet(folder, *all_travels(folder))
    try:
        one.add("p0", "prefill", "--max-num-seqs", "4")
        one.add("d0", "decode", "--max-num-seqs", "4")
        one.begin()
        yield one
    finally:
        one.close()


@contextlib.contextmanager
def asking(one: Fleet, prompt_tokens: int, max_tokens: int) -> Iterator[socket.socket]:
    """A streaming client; it is gone at the end of the block."""
    body = {"model": "mock", "prompt": [7] * prompt_tokens, "max_tokens": max_tokens}
    body |= {"ignore_eos": True, "stream": True, "temperature": 0}
    data = json.dumps(body).encode()
    host, _, port = one.router.http.rpartition(":")
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        yield client


def leave(one: Fleet, point: str) -> None:
    """A client comes, and goes away at `point`."""
    if point == "queue":
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(asking(one, 10, 3_000))
            wait_for(lambda: one.router.status()["sequences_running"] >= 4, "all seats are taken")
            stack.enter_context(asking(one, 10, 3_000))
            wait_for(lambda: one.router.status()["requests_waiting"] >= 1, "one waits")
        return
    if point == "transfer":
        reached = threading.Event()

        def look(pipe: Pipe, data: bytes) -> bytes:
            if pipe.num_bytes > 2_000:
                reached.set()
            return data

        data = one.nodes["d0"].data
        assert data is not None
        # The plan first: the neighbours dial again at once.
        data.plan = lambda _: Plan(out=Way(bytes_per_s=30_000, filter=look))
        data.reset()
        with asking(one, 6_000, 300):
            assert reached.wait(30), "no pages on the way"
        data.plan = lambda _: Plan()
        return
    if point == "prefill":
        with asking(one, 30_000, 300):

            def is_computing() -> bool:
                told = one.nodes["p0"].status()
                return told is not None and told["prefill_tokens_queued"] > 0

            wait_for(is_computing, "the prompt is being computed")
        return
    length = {"first token": 1, "mid-decode": 40, "last token": 79}[point]
    # Of HTTP and of gRPC; no token of this answer is without text.
    wanted = [Ask((7,) * k, 80, leave_after=length) for k in (100, 101)]
    assert all(len(mock_model.text(ask.tokens)) == 80 for ask in wanted)
    with one.ask(*wanted, clients=2) as traffic:
        assert len(traffic.finish().of(Verdict.LEFT)) == 2


POINTS = ["queue", "prefill", "transfer", "first token", "mid-decode", "last token"]


@pytest.mark.parametrize("point", POINTS)
def test_a9_a_client_that_leaves_frees_everything(small: Fleet, point: str) -> None:
    neighbours = scenes.mixed_asks(POINTS.index(point), 2, tokens_min=100, tokens_max=150)
    with small.ask(*neighbours, clients=2) as traffic:
        leave(small, point)
        gone_s = time.monotonic()
        traffic.finish().check(at_least=2)
    small.settled()
    record("A9", point=point, at_most_s=time.monotonic() - gone_s)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a9_clients_that_leave_anywhere_many_times(tmp_path: Path) -> None:
    """Half of 2,000 clients leave after a token of the seed's choice."""
    with fleet(tmp_path, kind="rust") as one:
        for seed in range(10):
            wanted = [
                Ask(ask.prompt, ask.max_tokens, ask.temperature, ask.seed, True, leave_after)
                for k, ask in enumerate(scenes.mixed_asks(seed, 200, 10, 60))
                for leave_after in [k % 50 if k % 2 else None]
            ]
            with one.ask(*wanted, clients=40) as traffic:
                traffic.finish().check(at_least=100)
            one.settled()
