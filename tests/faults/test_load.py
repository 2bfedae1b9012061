"""Rows E1, E3 to E6 and E9 of the matrix: more than the fleet can carry, in several shapes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import dopd
from tests.support.faults.fleet import Fleet, fleet
from tests.support.faults.load import (
    OK,
    REFUSED,
    Ask,
    Crowd,
    OpenLoop,
    Outcome,
    percentile,
)
from tests.support.faults.watch import record
from tests.support.processes import wait_for

STEP_MS, SEATS, ANSWER = 10, 8, 20
# Answers a second that the seats of one decode worker allow.
CAPACITY = SEATS / (ANSWER * STEP_MS / 1e3)


@contextlib.contextmanager
def small_fleet(folder: Path, config: str) -> Iterator[Fleet]:
    """Capacity is a matter of seats, so that a load generator in Python can exceed it."""
    file = folder / "dopd.toml"
    file.write_text(config)
    one = Fleet(folder, "--config", str(file))
    try:
        words = ("--step-ms", str(STEP_MS), "--max-num-seqs", str(SEATS))
        one.add("p0", "prefill", *words, kind="rust")
        one.add("d0", "decode", *words, kind="rust")
        one.begin()
        yield one
    finally:
        one.close()


def ask(number: int) -> Ask:
    return Ask(number, prompt_tokens=16 + number % 32, max_tokens=ANSWER)


def overload(one: Fleet, factor: float, seconds: float) -> list[Outcome]:
    async def run() -> list[Outcome]:
        crowd = Crowd(one.router.http)
        outcomes = await OpenLoop(factor * CAPACITY, seconds, ask).run(crowd)
        await crowd.close()
        return outcomes

    return asyncio.run(run())


def together(one: Fleet, asks: list[Ask]) -> list[Outcome]:
    async def run() -> list[Outcome]:
        crowd = Crowd(one.router.http)
        outcomes = await crowd.all(asks)
        await crowd.close()
        return outcomes

    return asyncio.run(run())


def counts(outcomes: list[Outcome]) -> Counter[tuple[str, str]]:
    return Counter((one.why, one.code) for one in outcomes)


def test_e1_at_three_times_the_load_what_is_not_served_is_refused_at_once(tmp_path: Path) -> None:
    with small_fleet(tmp_path, "[limits]\nqueue_requests_max = 16\n") as one:
        outcomes = overload(one, 3, 4)
        found = counts(outcomes)
        assert set(found) == {(OK, ""), (REFUSED, "queue_full")}, found
        refused = [o for o in outcomes if o.why == REFUSED]
        assert all(o.retry_after_ms and o.status == 503 for o in refused)
        # Half of what the seats allow, for machines that are busy with other things.
        assert found[OK, ""] >= CAPACITY * 4 / 2
        record("E1", rejection_p50_s=percentile([o.seconds for o in refused], 0.5))
        one.settled()


def test_e3_a_herd_is_served_or_refused(tmp_path: Path) -> None:
    with small_fleet(tmp_path, "[limits]\nqueue_requests_max = 100\n") as one:
        outcomes = together(one, [ask(number) for number in range(800)])
        found = counts(outcomes)
        assert set(found) <= {(OK, ""), (REFUSED, "queue_full")}, found
        assert found[OK, ""] >= 100
        one.settled()


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_e3_a_herd_of_five_thousand(tmp_path: Path) -> None:
    with small_fleet(tmp_path, "[limits]\nqueue_requests_max = 100\n") as one:
        found = counts(together(one, [ask(number) for number in range(5_000)]))
        assert set(found) <= {(OK, ""), (REFUSED, "queue_full")}, found
        one.settled()


def key_table(name: str, **quotas: int) -> str:
    digest = hashlib.sha256(f"key-of-{name}".encode()).hexdigest()
    lines = [f'name = "{name}"', f'tenant = "{name}"', f'sha256 = "{digest}"']
    lines += [f"{quota} = {value}" for quota, value in quotas.items()]
    return "[[key]]\n" + "\n".join(lines) + "\n"


def test_e4_a_tenant_that_floods_meets_its_quota_and_others_are_served(tmp_path: Path) -> None:
    config = key_table("loud", requests_running_max=4) + key_table("quiet")
    with small_fleet(tmp_path, config) as one:

        def of(name: str, numbers: range) -> list[Ask]:
            headers = (("authorization", f"Bearer key-of-{name}"),)
            return [Ask(n, 20, ANSWER, headers=headers) for n in numbers]

        outcomes = together(one, of("loud", range(300)) + of("quiet", range(300, 320)))
        loud, quiet = outcomes[:300], outcomes[300:]
        assert counts(quiet) == {(OK, ""): 20}
        found = counts(loud)
        assert set(found) == {(OK, ""), (REFUSED, "rate_limited")}, found
        assert {o.status for o in loud if o.why == REFUSED} == {429}


def test_e5_a_reader_that_stops_is_cut_and_slows_nobody(tmp_path: Path) -> None:
    config = "[limits]\nslow_reader_timeout_ms = 1000\nslow_reader_bytes_max = 4096\n"
    file = tmp_path / "dopd.toml"
    file.write_text(config)
    # Steps that take no time: what the kernel holds for a reader fills up soon.
    with fleet(tmp_path, "--config", str(file), prefill=0, decode=0) as one:
        one.add("m0", "mixed", "--mock-timings", "instant", kind="rust")
        one.begin()
        body = {"model": "mock", "prompt": [1], "max_tokens": 100_000, "ignore_eos": True}
        data = json.dumps(body | {"stream": True, "n": 4}).encode()
        host, _, port = one.router.http.rpartition(":")
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        with client:
            client.connect((host, int(port)))
            head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            client.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
            wait_for(lambda: one.router.status()["sequences_running"] == 4, "it is answered")
            assert counts(together(one, [ask(n) for n in range(8)])) == {(OK, ""): 8}
            wait_for(lambda: one.router.status()["sequences_running"] == 0, "it is cut", 60)
        one.settled()


def test_e6_in_an_outage_clients_retry_within_their_budget(tmp_path: Path) -> None:
    """What a server without workers gets: hardly more than what callers asked for."""
    file = tmp_path / "dopd.toml"
    file.write_text("[limits]\nno_worker_wait_ms = 20\n")
    one = Fleet(tmp_path, "--config", str(file))
    try:
        calls = 100

        async def outage() -> Counter[str]:
            async with dopd.AsyncClient(one.router.grpc) as client:

                async def call() -> str:
                    try:
                        await client.generate([1, 2], max_tokens=2)
                    except dopd.DopdError as error:
                        return type(error).__name__
                    return OK

                return Counter(await asyncio.gather(*(call() for _ in range(calls))))

        ended = asyncio.run(outage())
        assert OK not in ended
        asked = one.metric("dopd_requests_total")
        record("E6", amplification=asked / calls, calls=calls)
        assert calls <= asked <= 1.25 * calls + 3, ended
    finally:
        one.close()


def test_e9_tiny_requests_get_through_between_giants(tmp_path: Path) -> None:
    with fleet(tmp_path, prefill=1, decode=1, kind="rust") as one:

        async def run() -> tuple[list[Outcome], list[Outcome]]:
            crowd = Crowd(one.router.http)
            giants = [Ask(n, prompt_tokens=20_000, max_tokens=4) for n in range(4)]
            tiny = [Ask(100 + n, prompt_tokens=8, max_tokens=4) for n in range(60)]
            big = asyncio.create_task(crowd.all(giants, at_once=4))
            small = await crowd.all(tiny, at_once=4)
            found = await big, small
            await crowd.close()
            return found

        alone = together(one, [Ask(n, prompt_tokens=8, max_tokens=4) for n in range(20)])
        giants, tiny = asyncio.run(run())
        assert counts(giants + tiny) == {(OK, ""): 64}
        record(
            "E9",
            alone_p50_s=percentile([o.first - o.begun for o in alone if o.first], 0.5),
            beside_giants_p99_s=percentile([o.first - o.begun for o in tiny if o.first], 0.99),
        )
        one.settled()
