"""A long run with random faults: is everything answered right, and does anything grow?

    python -m bench.soak [--requests N] [--clients N] [--seed N] [--plot FILE.svg]

Closed loop over HTTP, every answer compared with the model. Rust mock workers (two prefill, three
decode, steps of a GPU) are killed, frozen for 0.3 to 4 s, drained and started again, one at a time,
every second or so; some clients leave early. The router is one process all the while: its resident
memory over the number of requests is fitted with a line, its descriptors and threads are compared
with those of a fleet at rest before. Not part of `make bench` without a name: minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.common import Meter, binary, finish, rss_bytes
from tests.support.faults.fleet import Fleet, Node, num_fds, num_tasks
from tests.support.faults.load import BROKEN, FAILED, OK, REFUSED, WRONG, Ask, Crowd, closed_loop
from tests.support.processes import wait_for

REQUESTS, CLIENTS = 100_000, 48
WARM_UP = 3_000
PROMPTS = 4_000
FAULT_PAUSE_S = (0.4, 1.6)
FREEZES_S = (0.3, 1.2, 4.0)
SAMPLE_S = 0.5
# The part of the run that is left out of the fit: pools and caches fill up.
SETTLING = 0.2
MUST = {"failed": 0, "wrong": 0, "rss_slope_mib_per_100k": 1.0}


def ask(number: int) -> Ask:
    """Short requests of all lengths; each twentieth client leaves, each hundredth stays long."""
    source = random.Random(number % PROMPTS)
    tokens = 120 if number % 100 == 0 else source.randint(2, 16)
    leaves = tokens // 2 if number % 20 == 7 else None
    return Ask(number % PROMPTS, source.choice((1, 15, 16, 17, 40, 100)), tokens, leaves)


@dataclass
class Sample:
    """The router at one moment."""

    at_s: float
    requests: int
    rss: int
    fds: int


@dataclass
class Storm:
    """Faults, one after the other, until told to stop. `counts`: how many of each kind."""

    fleet: Fleet
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    failure: BaseException | None = None
    _is_over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """In a thread of its own."""
        source = random.Random(self.seed)
        kinds = ("kill", "drain", *(f"freeze {hold} s" for hold in FREEZES_S))
        try:
            while not self._is_over.wait(source.uniform(*FAULT_PAUSE_S)):
                node = source.choice(list(self.fleet.nodes.values()))
                kind = source.choice(kinds)
                self.strike(node, kind)
                self.counts[f"{kind} {node.role}"] += 1
        except BaseException as error:  # noqa: BLE001  # the run is over, and says why
            self.failure = error

    def strike(self, node: Node, kind: str) -> None:
        """One fault, and the way back."""
        if kind.startswith("freeze"):
            node.signal(signal.SIGSTOP)
            time.sleep(float(kind.split()[1]))
            node.signal(signal.SIGCONT)
        else:
            node.signal(signal.SIGKILL if kind == "kill" else signal.SIGTERM)
            node.restart()
        wait_for(lambda: (node.status() or {}).get("state") == "ready", f"{node.name} is back")

    def stop(self) -> None:
        """No further fault."""
        self._is_over.set()


async def sampling(pid: int, crowd: Crowd, samples: list[Sample]) -> None:
    """Look at the router again and again."""
    begun = time.monotonic()
    while True:
        done = sum(crowd.seen.values())
        samples.append(Sample(time.monotonic() - begun, done, rss_bytes(pid), num_fds(pid)))
        await asyncio.sleep(SAMPLE_S)


async def run(fleet: Fleet, args: argparse.Namespace) -> dict[str, Any]:
    """All requests; what was seen."""
    crowd = Crowd(fleet.router.http)
    await closed_loop(crowd, ask, clients=args.clients, requests=min(WARM_UP, args.requests // 10))
    await crowd.close()
    await asyncio.to_thread(fleet.settled)
    pid = fleet.router.pid
    before = (num_fds(pid), num_tasks(pid))
    crowd = Crowd(fleet.router.http)
    samples: list[Sample] = []
    storm = Storm(fleet, args.seed)
    thread = threading.Thread(target=storm.run, name="storm")
    looking = asyncio.create_task(sampling(pid, crowd, samples))
    meter = Meter({"router": pid})
    thread.start()
    with meter.running():
        await closed_loop(crowd, ask, clients=args.clients, requests=args.requests)
    storm.stop()
    await asyncio.to_thread(thread.join)
    looking.cancel()
    await crowd.close()
    status = await asyncio.to_thread(fleet.settled)
    if storm.failure is not None:
        raise storm.failure
    return {
        "requests": args.requests,
        "seconds": round(meter.seconds, 1),
        "requests_per_s": round(args.requests / meter.seconds, 1),
        "seen": dict(crowd.seen),
        "examples": crowd.examples,
        "faults": dict(sorted(storm.counts.items())),
        "replays": status["replays_total"],
        "handoffs": status["handoffs_total"],
        "fds": {"before": before[0], "after": num_fds(pid)},
        "threads": {"before": before[1], "after": num_tasks(pid)},
        "rss_mib": {
            "begin": round(samples[0].rss / 2**20, 1),
            "end": round(samples[-1].rss / 2**20, 1),
            "most": round(max(sample.rss for sample in samples) / 2**20, 1),
        },
        "rss_slope_mib_per_100k": round(slope(samples) * 100_000 / 2**20, 3),
        "router_cores": round(meter.used_ns["router"] / 1e9 / meter.seconds, 2),
        "busy_elsewhere_cores": round(meter.foreign, 2),
        "samples": [(round(s.at_s, 1), s.requests, s.rss, s.fds) for s in samples],
    }


def slope(samples: list[Sample]) -> float:
    """Bytes per request by least squares, the first part left out."""
    kept = samples[int(len(samples) * SETTLING) :]
    mean_x = sum(s.requests for s in kept) / len(kept)
    mean_y = sum(s.rss for s in kept) / len(kept)
    over = sum((s.requests - mean_x) * (s.rss - mean_y) for s in kept)
    under = sum((s.requests - mean_x) ** 2 for s in kept)
    return over / under if under else 0.0


def draw(found: dict[str, Any], path: Path) -> None:
    """Memory over the run."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    requests = [sample[1] for sample in found["samples"]]
    axes.plot(requests, [sample[2] / 2**20 for sample in found["samples"]], linewidth=1)
    axes.set(xlabel="requests answered", ylabel="resident memory of the router, MiB")
    axes.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(path)


def main(argv: list[str]) -> int:
    """Run it, write it down; the exit code is 1 if a request failed or was wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="memory over the run")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="dopd-bench-") as name:
        fleet = Fleet(Path(name), "--log-level", "error")
        try:
            for role, count in (("prefill", 2), ("decode", 3)):
                for index in range(count):
                    fleet.add(f"{role[0]}{index}", role, kind="rust", is_direct=True)
            fleet.begin()
            found = asyncio.run(run(fleet, args))
        finally:
            fleet.close()
    if args.plot:
        draw(found, args.plot)
    seen = found["seen"]
    lost = {why: seen.get(why, 0) for why in (FAILED, BROKEN, REFUSED, WRONG)}
    result = found | {"not_right": lost, "must": MUST, "binary": binary("dopd-mock").parent.name}
    finish("soak", result)
    return 1 if any(lost.values()) or not seen.get(OK) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
