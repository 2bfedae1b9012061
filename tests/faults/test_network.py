"""Rows C: networks that break between router and workers, and between workers. 0 failures.

The proxies stand for the network: a partition is a held connection, since a program is told of
neither. What clients see is checked token by token.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable

import pytest

from dopd.types import LinkHello, LinkMessage
from tests.support.faults.fleet import Fleet, num_fds
from tests.support.faults.frames import Frame, changing
from tests.support.faults.proxy import Pipe, Plan, Way
from tests.support.faults.traffic import Ask, Results, Traffic, asks
from tests.support.faults.watch import GONE, record
from tests.support.processes import wait_for

LEASE_S = 3.0
# Over what is promised, on a machine that does other things, too: a wait, never a measure.
PATIENCE_S = 10.0


@pytest.fixture(autouse=True)
def no_grudges(pairs: Fleet) -> None:
    """What a test before did to a worker must not keep work from it here."""
    pairs.forget()


def is_out(state: str) -> bool:
    """Gets no new work."""
    return state != "ready"


def long_traffic(fleet: Fleet, seed: int, clients: int = 8) -> Traffic:
    """Answers of about a second: some are always under way."""
    source = (Ask(one.prompt, 150, one.temperature, one.seed) for one in asks(seed, prompt_max=120))
    return Traffic(fleet.router.http, fleet.router.grpc, source, clients=clients)


def wait_traffic(traffic: Traffic, more: int = 4) -> None:
    """So many more answers have ended."""
    before = len(traffic.done)
    wait_for(lambda: len(traffic.done) >= before + more, f"{more} more answers")


def worst_stall_s(results: Results, from_s: float, to_s: float) -> float:
    """The longest wait for a piece among answers that were under way in this time."""
    return max(
        (o.stall_s for o in results.all if o.begun_s < to_s and o.ended_s > from_s), default=0.0
    )


@pytest.mark.parametrize("hold_s", [4.0, pytest.param(10.0, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", ["d0", "p0"])
def test_c1_a_partition_from_the_router_is_noticed_and_heals(
    pairs: Fleet, name: str, hold_s: float
) -> None:
    node = pairs.nodes[name]
    pid = node.pid
    with long_traffic(pairs, seed=1) as traffic:
        wait_traffic(traffic)
        node.join.hold()
        cut_s = time.monotonic()
        out_s = pairs.watch.wait(name, is_out, cut_s)
        pairs.watch.wait(name, lambda state: state == GONE, cut_s)
        time.sleep(max(cut_s + hold_s - time.monotonic(), 0))
        node.join.release()
        healed_s = time.monotonic()
        back_s = pairs.watch.wait(name, lambda state: state == "ready", healed_s)
        wait_traffic(traffic)
        results = traffic.stop()
    results.check()
    assert node.pid == pid
    pairs.settled()
    stall_s = worst_stall_s(results, cut_s, healed_s)
    record("C1", role=name[0], detect_s=out_s - cut_s, back_s=back_s - healed_s, stall_s=stall_s)
    assert out_s - cut_s < LEASE_S, "ejected before the lease is over"
    assert stall_s < LEASE_S, "streams went on elsewhere before the lease was over"


@pytest.mark.parametrize("way", ["to_router", "to_worker"])
@pytest.mark.parametrize("name", ["d0", "p0"])
def test_c2_loss_in_one_direction_is_a_partition(pairs: Fleet, name: str, way: str) -> None:
    node = pairs.nodes[name]
    with long_traffic(pairs, seed=2) as traffic:
        wait_traffic(traffic)
        node.join.hold(out=way == "to_router", back=way == "to_worker")
        cut_s = time.monotonic()
        out_s = pairs.watch.wait(name, is_out, cut_s)
        wait_traffic(traffic)
        node.join.release()
        healed_s = time.monotonic()
        back_s = pairs.watch.wait(name, lambda state: state == "ready", healed_s)
        results = traffic.stop()
    results.check()
    pairs.settled()
    stall_s = worst_stall_s(results, cut_s, healed_s)
    record("C2", way=way, role=name[0], detect_s=out_s - cut_s, stall_s=stall_s)
    record("C2", way=way, role=name[0], back_s=back_s - healed_s)
    assert out_s - cut_s < 0.8 * LEASE_S, "noticed by the worker's own lease alone"


@pytest.mark.parametrize("names", [("d0",), ("p0", "p1", "d0", "d1")], ids=len)
def test_c3_a_half_open_stream_is_noticed_and_the_first_request_is_not_lost(
    pairs: Fleet, names: tuple[str, ...]
) -> None:
    pairs.settled()
    for name in names:
        pairs.nodes[name].join.half_open()
    with pairs.ask(*itertools.islice(asks(3), 8)) as traffic:
        traffic.finish().check(at_least=8)
    begun_s = time.monotonic()
    for name in names:
        pairs.watch.wait(name, lambda state: state == "ready", begun_s)
    pairs.settled()


class CutFrom:
    """A data link that carries nothing from one source."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._cut: set[Pipe] = set()

    def __call__(self, pipe: Pipe, message: LinkMessage, payload: bytes) -> Iterable[Frame]:
        if isinstance(message, LinkHello) and message.worker == self._worker:
            self._cut.add(pipe)
        return [] if pipe in self._cut else [(message, payload)]


def test_c4_a_partition_of_one_pair_costs_no_request(pairs: Fleet) -> None:
    data = pairs.nodes["d0"].data
    assert data is not None
    data.plan = changing(CutFrom("p0"))
    data.reset()
    with long_traffic(pairs, seed=4) as traffic:
        cut_s = time.monotonic()
        wait_for(lambda: pairs.router.status()["pairs_open"] == 1, "the breaker of the pair opens")
        opened_s = time.monotonic()
        before = pairs.router.status()["handoffs_by"]["arrived"]
        wait_traffic(traffic, 15)
        assert pairs.router.status()["handoffs_by"]["arrived"] > before, "other pairs are used"
        data.release()
        data.reset()
        wait_for(lambda: pairs.router.status()["pairs_open"] == 0, "a probe closes it")
        results = traffic.stop()
    results.check(at_least=15)
    assert pairs.settled()["breaker_openings_by"]["worker"] == 0
    record("C4", requests=len(results.all), open_s=opened_s - cut_s)
    record("C4", stall_s=results.longest_stall_s)


def decode_s(results: Results) -> float:
    """Median time from the first piece of an answer to its last."""
    times = sorted(o.token_s[-1] - o.token_s[0] for o in results.all if o.token_s)
    return times[len(times) // 2]


def test_c6_latency_ejects_nobody_and_does_not_slow_decoding(pairs: Fleet) -> None:
    fixed = [Ask((k,) * 40, 100, seed=k) for k in range(8)]
    with pairs.ask(*fixed) as traffic:
        near = traffic.finish()
    pairs.settled()
    for node in pairs.nodes.values():
        slow = Way(latency_s=0.1, jitter_s=0.05)
        node.join.plan = lambda _, way=slow: Plan(out=way, back=way)
        node.join.reset()
    begun_s = time.monotonic()
    for name in pairs.nodes:
        pairs.watch.wait(name, lambda state: state == GONE, begun_s)
    pairs.begin()
    joined_s = time.monotonic()
    with pairs.ask(*fixed) as traffic:
        far = traffic.finish()
    with long_traffic(pairs, seed=6, clients=4) as traffic:
        time.sleep(2)
        traffic.stop().check()
    far.check(at_least=8)
    ejected = [c for name in pairs.nodes for c in pairs.watch.changes(name, joined_s)]
    assert not [change for change in ejected if is_out(change.state)]
    record("C6", near_s=decode_s(near), far_s=decode_s(far))
    # 100 steps of 7 ms. Were a step to wait for the router, it would be 100 round trips of 200 ms.
    assert decode_s(far) < decode_s(near) + 1.0
    pairs.settled()


def test_c7_a_narrow_link_delays_and_times_nothing_out(pairs: Fleet) -> None:
    """1 Mbit/s between all, also while pages travel: heartbeats and tokens come through."""
    narrow = Way(bytes_per_s=125_000)
    for node in pairs.nodes.values():
        for proxy in (node.join, node.data):
            assert proxy is not None
            proxy.plan = lambda _: Plan(out=narrow, back=narrow)
            proxy.reset()
    begun_s = time.monotonic()
    for name in pairs.nodes:
        pairs.watch.wait(name, lambda state: state == GONE, begun_s)
    pairs.begin()
    joined_s = time.monotonic()
    before = pairs.router.status()
    long = [Ask(tuple(k % 256 for k in range(n, n + 4_000)), 40, seed=n) for n in range(6)]
    with pairs.ask(*long, clients=6) as traffic:
        results = traffic.finish()
    results.check(at_least=6)
    after = pairs.router.status()
    ejected = [c for name in pairs.nodes for c in pairs.watch.changes(name, joined_s)]
    assert not [change for change in ejected if is_out(change.state)]
    assert after["replays_total"] == before["replays_total"]
    assert after["handoffs_by"]["arrived"] > before["handoffs_by"]["arrived"], "no page travelled"
    first_s = max(one.token_s[0] - one.begun_s for one in results.all)
    record("C7", first_token_s=first_s)
    pairs.settled()


def test_c8_a_storm_of_resets_is_met_with_back_off_and_leaks_nothing(pairs: Fleet) -> None:
    pairs.settled()
    router_fds = num_fds(pairs.router.pid)
    fds = {name: num_fds(node.pid) for name, node in pairs.nodes.items()}
    storm = [pairs.nodes["d0"], pairs.nodes["p0"]]
    with long_traffic(pairs, seed=8, clients=4) as traffic:
        begun_s = time.monotonic()
        before = [len(node.join.begun_s) for node in storm]
        for node in storm:
            node.join.refuse()
            node.join.reset()
        time.sleep(3)
        dials = [len(n.join.begun_s) - old for n, old in zip(storm, before, strict=True)]
        for node in storm:
            node.join.release()
        # Taken, and then reset again and again.
        for _ in range(10):
            time.sleep(0.1)
            for node in storm:
                node.join.reset()
        healed_s = time.monotonic()
        for node in storm:
            pairs.watch.wait(node.name, lambda state: state == "ready", healed_s, PATIENCE_S)
        traffic.stop().check()
    # 50 ms doubling to 2 s, jitter from a half: 3 s hold at most 11 tries.
    assert all(0 < count <= 12 for count in dials), dials
    record("C8", dials=dials, seconds=healed_s - begun_s)
    pairs.settled()
    wait_for(lambda: num_fds(pairs.router.pid) <= router_fds + 4, "the router's descriptors")
    for name, node in pairs.nodes.items():
        wait_for(
            lambda n=name, pid=node.pid: num_fds(pid) <= fds[n] + 4,  # type: ignore[misc]
            f"descriptors of {name}",
        )


@pytest.mark.parametrize("seconds", [4.0, pytest.param(60.0, marks=pytest.mark.soak)])
@pytest.mark.parametrize("times", [(0.2, 0.2), (1.0, 1.0)], ids=["200ms", "1s"])
def test_c12_a_flapping_link_ends_no_request_and_moves_few(
    pairs: Fleet, times: tuple[float, float], seconds: float
) -> None:
    before = pairs.router.status()
    with long_traffic(pairs, seed=12) as traffic:
        pairs.nodes["d0"].join.flap(*times)
        time.sleep(seconds)
        pairs.nodes["d0"].join.release()
        results = traffic.stop()
    results.check(at_least=8)
    after = pairs.settled()
    replays = after["replays_total"] - before["replays_total"]
    record("C12", flap_s=times[0], requests=len(results.all), replays=replays)
    assert replays <= 3 * len(results.all)
