"""What faults cost: figures T1 to T7 and T9 to T11 of the promise, on mock workers.

    python -m bench.faults [--rounds N] [--requests N] [--only NAME ...] [--plot FILE.svg]

Real processes on loopback; every answer of every scene is compared with the model (T5). Times are
the median and the worst of the rounds, in milliseconds, from the fault (the system call) to what
the router's status page shows, asked for every two milliseconds. Scenes:
- crash: SIGKILL of a decode worker under streams: unrouted (T1); same bytes, longest pause (T4);
- hang: SIGSTOP of one: ejected, dead (T2);
- deaths: a closed loop while one worker after the other is killed, prefill or decode (T3);
- orphans: a source or a destination dies, or hangs, in the middle of a slow transfer while the
  client leaves: pages of the other side back (T6); Python workers, TCP through a slow proxy;
- cancel: a client leaves: seats and pages free at both workers (T7);
- outage: no worker at all: requests that the server saw for one of the SDK's callers (T9);
- roll: every worker is drained and started again under load (T10);
- restart: SIGKILL of the router, a new one: first right answer, all workers adopted (T11).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dopd
from bench.common import Meter, binary, finish
from bench.faults_anchors import ANCHORS
from bench.faults_pages import cancel, orphans, spread, workers
from tests.support.faults import scenes
from tests.support.faults.load import OK, Ask, Crowd, closed_loop
from tests.support.faults.timing import when_ready, when_state
from tests.support.faults.traffic import Results, Traffic, Verdict

ROUNDS, REQUESTS = 20, 10_000
STREAMS = 40
DEATH_PAUSE_S = 0.5


class Judge:
    """Adds up what all scenes' clients saw."""

    def __init__(self) -> None:
        self.verdicts: Counter[str] = Counter()
        self.tokens = 0

    def see(self, results: Results) -> None:
        """Answers of one scene."""
        self.verdicts.update(one.verdict.value for one in results.all)
        self.tokens += sum(len(one.text) for one in results.all)

    def see_crowd(self, crowd: Crowd) -> None:
        """Answers of a closed loop."""
        names = {"ok": "right", "failed": "error", "refused": "error", "broken": "error"}
        for why, count in crowd.seen.items():
            self.verdicts[names.get(why, why)] += count


def crash(rounds: int, judge: Judge) -> dict[str, Any]:
    """T1, T4."""
    unrouted, pauses, replays, failed = [], [], 0, 0
    with workers(2, 2) as fleet:
        for seed in range(rounds):
            victim = scenes.decoders(fleet)[0]
            before = fleet.router.status()["replays_total"]
            asks = scenes.mixed_asks(seed, STREAMS)
            with fleet.ask(*asks, clients=STREAMS) as traffic:
                scenes.when_busy(victim, seats=STREAMS // 8, steps=5 + seed)
                at_s = victim.kill()
                gone_s = when_state(fleet.router.admin, victim.name, is_gone)
                results = traffic.finish()
            judge.see(results)
            replays += fleet.router.status()["replays_total"] - before
            failed += len(results.all) - len(results.of(Verdict.RIGHT))
            unrouted.append(gone_s - at_s)
            pauses.append(longest_pause(results, at_s))
            fleet.settled()
            fleet.replace(victim)
    return {
        "unrouted": spread(unrouted),
        "longest_pause_over_a_death": spread(pauses),
        "streams": rounds * STREAMS,
        "replayed": replays,
        "not_identical": failed,
    }


def is_gone(state: str) -> bool:
    """Not attached."""
    return state == "gone"


def longest_pause(results: Results, at_s: float) -> float:
    """Of all streams that were alive at `at_s`: the longest gap around or after it."""
    longest = 0.0
    for one in results.all:
        marks = [*one.token_s, one.ended_s]
        gaps = [b - a for a, b in itertools.pairwise(marks) if b >= at_s]
        if one.token_s and one.token_s[0] < at_s:
            longest = max([longest, *gaps])
    return longest


def hang(rounds: int, judge: Judge) -> dict[str, Any]:
    """T2."""
    ejected, dead, pauses = [], [], []
    with workers(2, 2) as fleet:
        for seed in range(rounds):
            victim = scenes.decoders(fleet)[0]
            name, admin = victim.name, fleet.router.admin
            asks = scenes.mixed_asks(1_000 + seed, STREAMS)
            with fleet.ask(*asks, clients=STREAMS) as traffic:
                scenes.when_busy(victim, seats=STREAMS // 8, steps=5)
                at_s = victim.signal(signal.SIGSTOP)
                out_s = when_state(admin, name, lambda state: state != "ready")
                gone_s = when_state(admin, name, is_gone)
                victim.signal(signal.SIGCONT)
                results = traffic.finish()
            judge.see(results)
            ejected.append(out_s - at_s)
            dead.append(gone_s - at_s)
            pauses.append(longest_pause(results, at_s))
            fleet.settled()
            fleet.replace(victim)
    return {"ejected": spread(ejected), "dead": spread(dead), "longest_pause": spread(pauses)}


def deaths(role: str, requests: int, judge: Judge) -> dict[str, Any]:
    """T3: the workers of one role die by turns, again and again, at whatever they are doing."""
    with workers(2, 2) as fleet:
        victims = [node for node in fleet.nodes.values() if node.role == role]
        is_over = threading.Event()
        count = [0]
        failures: list[BaseException] = []

        def kill() -> None:
            while not is_over.wait(DEATH_PAUSE_S):
                victim = victims[count[0] % len(victims)]
                victim.kill()
                victim.restart()
                when_ready(fleet.router.admin, victim.name)
                count[0] += 1

        def kill_all() -> None:
            try:
                kill()
            except BaseException as error:  # noqa: BLE001  # without deaths nothing is measured
                failures.append(error)

        crowd = Crowd(fleet.router.http)
        thread = threading.Thread(target=kill_all)
        thread.start()
        begun_s = time.monotonic()
        try:
            asyncio.run(loop(crowd, requests))
        finally:
            is_over.set()
            thread.join()
        seconds = time.monotonic() - begun_s
        if failures:
            raise failures[0]
        status = fleet.settled()
    judge.see_crowd(crowd)
    seen = crowd.seen
    return {
        "requests": requests,
        "deaths": count[0],
        "failed": requests - seen[OK],
        "examples": crowd.examples,
        "replays": status["replays_total"],
        "requests_per_s": round(requests / seconds, 1),
    }


async def loop(crowd: Crowd, requests: int) -> None:
    """A closed loop of short requests of many kinds."""

    def ask(number: int) -> Ask:
        source = random.Random(number % 3_000)
        return Ask(number % 3_000, source.choice((1, 16, 40, 200)), source.randint(4, 24))

    await closed_loop(crowd, ask, clients=32, requests=requests)
    await crowd.close()


def outage(calls: int) -> dict[str, Any]:
    """T9: what an outage of all workers makes of the calls of one client."""
    with tempfile.TemporaryDirectory(prefix="dopd-bench-") as name:
        config = Path(name) / "dopd.toml"
        config.write_text("[limits]\nno_worker_wait_ms = 20\n")
        with workers(0, 0, "--config", str(config)) as fleet:

            async def ask_all() -> None:
                async with dopd.AsyncClient(fleet.router.grpc) as client:

                    async def one() -> None:
                        with contextlib.suppress(dopd.DopdError):
                            await client.generate([1, 2], max_tokens=2)

                    await asyncio.gather(*(one() for _ in range(calls)))

            asyncio.run(ask_all())
            seen = fleet.metric("dopd_requests_total")
    return {"calls": calls, "requests": seen, "amplification": round(seen / calls, 3)}


def roll(judge: Judge, kind: str) -> dict[str, Any]:
    """T10: every worker, twice."""
    with workers(2, 2, kind=kind) as fleet:
        with fleet.traffic(seed=4, clients=12) as traffic:
            wait_flow(traffic)
            begun_s = time.monotonic()
            for _ in range(2):
                scenes.roll(fleet)
            seconds = time.monotonic() - begun_s
            wait_flow(traffic)
            results = traffic.stop()
        judge.see(results)
        fleet.settled()
    right = len(results.of(Verdict.RIGHT))
    errors = {f"{status} {code}": count for (status, code), count in results.errors.items()}
    return {
        "workers": 8,
        "requests": len(results.all),
        "failed": len(results.all) - right,
        "errors": errors,
        "longest_stall_ms": round(results.longest_stall_s * 1e3, 1),
        "seconds": round(seconds, 1),
    }


def wait_flow(traffic: Traffic) -> None:
    """Until twenty answers more are there."""
    count = traffic.count()
    while traffic.count() < count + 20:
        time.sleep(0.02)


def restart(rounds: int) -> dict[str, Any]:
    """T11: from the start of the new process, and what its workers had is free."""
    serving, adopted = [], []
    with workers(1, 2) as fleet:
        names = list(fleet.nodes)
        for seed in range(rounds):
            with fleet.ask(*scenes.mixed_asks(seed, 8, 200, 300), clients=8) as traffic:
                scenes.when_busy(fleet.nodes["d0"], seats=1, steps=3)
                fleet.router.process.kill()
                begun_s = time.monotonic()
                fleet.restart_router()
                fleet.router.complete([1, 2], max_tokens=1)
                serving.append(time.monotonic() - begun_s)
                adopted_s = when_ready(fleet.router.admin, *names)
                adopted.append(adopted_s - begun_s)
                traffic.stop()
            fleet.settled()
    return {"first_answer": spread(serving), "all_workers_adopted": spread(adopted)}


def draw(result: dict[str, Any], path: Path) -> None:
    """Times from fault to what the router shows: median and worst."""
    from matplotlib import pyplot

    rows = [
        (f"{scene}: {name.replace('_', ' ')}", found["median_ms"], found["worst_ms"])
        for scene, figures in result["scenes"].items()
        for name, found in figures.items()
        if isinstance(found, dict) and "median_ms" in found
    ]
    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(rows) + 1))
    places = range(len(rows))
    axes.hlines(places, [row[1] for row in rows], [row[2] for row in rows], color="grey")
    axes.plot([row[1] for row in rows], places, "o", label="median")
    axes.plot([row[2] for row in rows], places, "|", markersize=10, label="worst")
    axes.set_yticks(list(places), [row[0] for row in rows])
    axes.set(xscale="log", xlabel="milliseconds from the fault")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main(argv: list[str]) -> int:
    """Play the scenes, write it down; the exit code is 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of each loop of deaths")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="scenes")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture of the times")
    args = parser.parse_args(argv)
    judge = Judge()
    every: dict[str, Callable[[], dict[str, Any]]] = {
        "crash": lambda: crash(args.rounds, judge),
        "hang": lambda: hang(args.rounds, judge),
        "deaths_prefill": lambda: deaths("prefill", args.requests, judge),
        "deaths_decode": lambda: deaths("decode", args.requests, judge),
        "orphans": lambda: orphans(args.rounds),
        "cancel": lambda: cancel(args.rounds),
        "outage": lambda: outage(200),
        "roll_rust": lambda: roll(judge, "rust"),
        "roll_python": lambda: roll(judge, "python"),
        "restart": lambda: restart(args.rounds),
    }
    chosen = args.only or list(every)
    if unknown := set(chosen) - set(every):
        parser.error(f"no scene {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    found: dict[str, Any] = {}
    meter = Meter({})
    with meter.running():
        for name in chosen:
            begun_s = time.monotonic()
            found[name] = every[name]()
            print(f"{name}: {time.monotonic() - begun_s:.0f} s {found[name]}", flush=True)
    result = {
        "scenes": found,
        "answers": dict(judge.verdicts),
        "wrong": judge.verdicts["wrong"],
        "busy_cores": round(meter.foreign, 2),
        "seconds": round(meter.seconds),
        "binary": binary("dopd-router").parent.name,
        "anchors_as_published": ANCHORS,
    }
    if args.plot:
        draw(result, args.plot)
    finish("faults", result)
    return 1 if judge.verdicts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
