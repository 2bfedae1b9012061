"""What happens at one to three times the load that the fleet can carry.

    python -m bench.overload [--seconds N] [--plot FILE.svg]

Open loop: requests come at their own times, whatever became of the others. One Rust mock process
with a prefill and two decode workers whose every step takes 20 ms, so that capacity is a matter of
seats and not of this machine's cores. Three settings:
- default: limits as they come; the queue holds 10,000 requests and nobody gives up;
- short: an operator's `queue_requests_max`, about a second of work: what is above is refused;
- deadline: the default queue, and answers that are worth nothing after 3 s.
Goodput counts answers that are whole, right, and in time. Refusals are timed from when the request
was due, by a client on the same cores: `lag_ms` is the client's own part.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bench.common import Meter, binary, finish, rss_bytes
from bench.mock_fleet import fleet
from tests.support.faults.load import (
    FAILED,
    OK,
    REFUSED,
    WRONG,
    Ask,
    Crowd,
    OpenLoop,
    Outcome,
    percentile,
)

STEP_MS, SEATS, DECODES, ANSWER = 20, 24, 2, 32
MOCK = (
    "--workers", f"prefill=1,decode={DECODES}", "--step-ms", str(STEP_MS),
    "--max-num-seqs", str(SEATS),
)  # fmt: skip
# What the seats of the decode workers allow; the peak is measured.
CAPACITY = DECODES * SEATS / (ANSWER * STEP_MS / 1e3)
FACTORS = (0.8, 1.0, 1.5, 2.0, 3.0)
# A second of work or so.
SHORT_QUEUE = 64
DEADLINE_MS = 3_000
# What others publish; not measured here.
ANCHORS = {
    "dynamo": "rejection off by default; 503 or 529 when on (docs, request-rejection)",
    "target": "goodput at 3x at least 95 % of the peak, rejection p99 at most 5 ms, "
    "memory at most 64 MiB more",
}
SETTINGS = {
    "default": "",
    "short": f"[limits]\nqueue_requests_max = {SHORT_QUEUE}\n",
    "deadline": f"[limits]\nrequest_timeout_ms = {DEADLINE_MS}\nno_worker_wait_ms = 1000\n"
    "slow_reader_timeout_ms = 3000\n",
}
GROWTH_MAX = 64 << 20
REJECTION_MAX_MS = 5.0
SAMPLE_S = 0.25


def ask(number: int) -> Ask:
    """Prompts of different lengths, answers of one."""
    return Ask(number % 2_000, prompt_tokens=16 + number % 64, max_tokens=ANSWER)


@contextlib.asynccontextmanager
async def watching(pid: int) -> AsyncIterator[list[int]]:
    """Resident bytes of the process, again and again."""
    samples = [rss_bytes(pid)]

    async def look() -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            samples.append(rss_bytes(pid))

    task = asyncio.create_task(look())
    try:
        yield samples
    finally:
        task.cancel()


async def load(address: str, pid: int, factor: float, seconds: float) -> dict[str, Any]:
    """One load, to the end of its last answer."""
    crowd = Crowd(address)
    loop = OpenLoop(factor * CAPACITY, seconds, ask, seed=round(factor * 10))
    meter = Meter({"router": pid})
    async with watching(pid) as samples:
        with meter.running():
            outcomes = await loop.run(crowd)
    await crowd.close()
    found = summary(outcomes, seconds)
    return found | {
        "offered_factor": factor,
        "router_rss_growth_mib": round((max(samples) - samples[0]) / 2**20, 1),
        "router_cores": round(meter.used_ns["router"] / 1e9 / meter.seconds, 2),
        "busy_elsewhere_cores": round(meter.foreign, 2),
        "lag_ms": round(loop.lag_s * 1e3, 1),
    }


def summary(outcomes: list[Outcome], seconds: float) -> dict[str, Any]:
    """Counts and times of one load."""
    good = [one for one in outcomes if one.why == OK]
    # An answer that was due near the end ends after it; each counts where it ended.
    begun = min(one.begun for one in outcomes)
    within = [one for one in good if one.ended - begun <= seconds]
    refused = sorted(one.seconds * 1e3 for one in outcomes if one.why == REFUSED)
    firsts = [(one.first - one.begun) * 1e3 for one in good if one.first is not None]
    counts = Counter(one.why for one in outcomes)
    codes = Counter(one.code for one in outcomes if one.why not in (OK, REFUSED))
    return {
        "sent": len(outcomes),
        "offered_per_s": round(len(outcomes) / seconds, 1),
        "goodput_per_s": round(len(within) / seconds, 2),
        "ok": counts[OK],
        "refused": counts[REFUSED],
        "failed": counts[FAILED],
        "wrong": counts[WRONG],
        "other": len(outcomes) - sum(counts[why] for why in (OK, REFUSED, FAILED, WRONG)),
        "codes": dict(codes),
        "rejection_ms": {
            "p50": round(statistics.median(refused), 2) if refused else None,
            "p99": round(percentile(refused, 0.99), 2) if refused else None,
        },
        "without_retry_after": sum(
            one.retry_after_ms is None for one in outcomes if one.why == REFUSED
        ),
        "ttft_ms": {
            "p50": round(percentile(firsts, 0.5), 1),
            "p99": round(percentile(firsts, 0.99), 1),
        },
    }


def judge(loads: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of T8 from the loads of one setting."""
    peak = max(one["goodput_per_s"] for one in loads)
    heaviest = max(loads, key=lambda one: one["offered_factor"])
    rejections = [one["rejection_ms"]["p99"] for one in loads if one["refused"]]
    growth = max(one["router_rss_growth_mib"] for one in loads)
    return {
        "peak_per_s": peak,
        "share_of_peak_at_most": round(heaviest["goodput_per_s"] / peak, 3),
        "rejection_p99_ms_worst": max(rejections, default=None),
        "router_rss_growth_mib_worst": growth,
        "wrong": sum(one["wrong"] for one in loads),
        "loads": loads,
    }


def run(name: str, seconds: float) -> dict[str, Any]:
    """All loads of one setting, each on a fleet of its own."""
    loads = []
    for factor in FACTORS:
        with fleet(SETTINGS[name], *MOCK) as (address, pids):
            asyncio.run(warm(address))
            loads.append(asyncio.run(load(address, pids["router"], factor, seconds)))
        one = loads[-1]
        print(f"{name} {factor}x: {one['goodput_per_s']} of {one['offered_per_s']}/s", flush=True)
    return judge(loads)


async def warm(address: str) -> None:
    """Until the workers are there and everything has been used once."""
    crowd = Crowd(address)
    await crowd.all([ask(number) for number in range(64)], at_once=16)
    await crowd.close()


def draw(found: dict[str, Any], path: Path) -> None:
    """Goodput over offered load."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, result in found.items():
        loads = result["loads"]
        offered = [one["offered_per_s"] for one in loads]
        axes.plot(offered, [one["goodput_per_s"] for one in loads], marker="o", label=name)
    axes.axvline(CAPACITY, color="grey", linewidth=0.8, label="what the seats allow")
    axes.set(xlabel="offered, requests/s", ylabel="answered right and in time, requests/s")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main(argv: list[str]) -> int:
    """Measure and write it down."""
    parser = argparse.ArgumentParser(prog="python -m bench.overload")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load")
    parser.add_argument("--only", choices=list(SETTINGS), help="one setting")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture of it")
    args = parser.parse_args(argv)
    names = [args.only] if args.only else list(SETTINGS)
    found = {name: run(name, args.seconds) for name in names}
    if args.plot:
        draw(found, args.plot)
    result = {
        "capacity_per_s": round(CAPACITY, 1),
        "seconds_each": args.seconds,
        "step_ms": STEP_MS,
        "seats": SEATS * DECODES,
        "answer_tokens": ANSWER,
        "short_queue": SHORT_QUEUE,
        "deadline_ms": DEADLINE_MS,
        "binary": binary("dopd-router").parent.name,
        "settings": found,
        "anchors": ANCHORS,
    }
    if "short" in found:
        short = found["short"]
        result["is_met"] = {
            "goodput": short["share_of_peak_at_most"] >= 0.95,
            "rejection": short["rejection_p99_ms_worst"] is not None
            and short["rejection_p99_ms_worst"] <= REJECTION_MAX_MS,
            "memory": short["router_rss_growth_mib_worst"] <= GROWTH_MAX / 2**20,
        }
    return finish("overload", result)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
