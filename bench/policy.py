"""What the policy is worth with real processes: router, mock workers, clients.

    python -m bench.policy [--seconds N] [--only order|overload|tenants]

One Rust mock process with two prefill and two decode workers that take the step times of a 70B
model on four H100 (a cost model, not a GPU); all else is real. Open loop, a mixed trace: nine of
ten prompts have 100 to 600 tokens, one has 8,000 to 16,000; answers have 32.
- order: the load of a busy hour, in order of arrival and in dopd's order. Short prompts' P99 TTFT.
- overload: one to three times what prefill can do. Goodput: answers whole, right, and within the
  targets for the first token (2 s, or 250 ms for each 1,000 tokens) and per token (60 ms).
- tenants: one with a steady sixth of the capacity, another that floods; shares on and off.
Both sides of each comparison run one after the other on the same arrivals.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.common import Meter, binary, finish
from bench.mock_fleet import fleet
from tests.support.faults.load import OK, Ask, Crowd, OpenLoop, Outcome, percentile

WORKERS = "prefill=2,decode=2"
TIMINGS = "h100-70b"
MOCK = ("--workers", WORKERS, "--mock-timings", TIMINGS)
ANSWER = 32
SHORT, LONG = (100, 600), (8_000, 16_000)
LONG_EVERY = 10
# About what this fleet does: prefill workers some 15 by the cost model, decode workers as much.
CAPACITY_PER_S = 28.0
BUSY = 1.0
FACTORS = (1.0, 2.0, 3.0)
TTFT_MS, TTFT_MS_PER_1K, TPOT_MS = 2_000, 250, 60
TARGETS = f"""
[slo]
ttft_ms = {TTFT_MS}
ttft_ms_per_1k_tokens = {TTFT_MS_PER_1K}
tpot_ms = {TPOT_MS}
"""
ARRIVAL = '\n[policy]\norder = "fcfs"\ndemote = false\nrefuse = "never"\n'
SETTINGS = {"arrival": TARGETS + ARRIVAL, "dopd": TARGETS}
KEYS = {"steady": "key-of-the-steady-one", "flood": "key-of-the-flood"}


@dataclass(frozen=True)
class Mix:
    """Which request comes as the n-th."""

    seed: int
    headers: tuple[tuple[str, str], ...] = ()

    def __call__(self, number: int) -> Ask:
        """The request."""
        source = random.Random(f"{self.seed}/{number}")
        lengths = LONG if source.randrange(LONG_EVERY) == 0 else SHORT
        length = source.randint(*lengths)
        # Few prompts of each length, so that their answers are computed once.
        length -= length % 50
        return Ask(length, length, ANSWER, headers=self.headers)


def is_long(outcome: Outcome) -> bool:
    """One of the long prompts."""
    return outcome.ask.prompt_tokens >= LONG[0]


def target_ms(outcome: Outcome) -> float:
    """What its first token may take."""
    return max(TTFT_MS, TTFT_MS_PER_1K * outcome.ask.prompt_tokens / 1_000)


def is_good(outcome: Outcome) -> bool:
    """Whole, right, and within both targets."""
    if outcome.why != OK or outcome.first is None:
        return False
    tpot_ms = (outcome.ended - outcome.first) * 1e3 / (ANSWER - 1)
    return ttft_ms(outcome) <= target_ms(outcome) and tpot_ms <= TPOT_MS


def ttft_ms(outcome: Outcome) -> float:
    """From when it was due."""
    return ((outcome.first or outcome.ended) - outcome.begun) * 1e3


def summary(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Counts and times of one run."""
    done = [one for one in outcomes if one.why == OK]
    kinds = {
        "short": [ttft_ms(one) for one in done if not is_long(one)],
        "long": [ttft_ms(one) for one in done if is_long(one)],
    }
    good = [one for one in outcomes if is_good(one)]
    return {
        "sent": len(outcomes),
        "offered_per_s": round(len(outcomes) / seconds, 2),
        "good": len(good),
        "goodput_per_s": round(len(good) / seconds, 2),
        "attainment": round(len(good) / max(len(outcomes), 1), 4),
        "attainment_long": share(good, outcomes, is_long),
        "ended": dict(Counter(one.why for one in outcomes)),
        "codes": dict(Counter(one.code for one in outcomes if one.why != OK)),
        "ttft_ms": {
            name: {f"p{p}": round(percentile(times, p / 100)) for p in (50, 90, 99)}
            for name, times in kinds.items()
        },
    }


def share(
    good: Sequence[Outcome], all_: Sequence[Outcome], which: Callable[[Outcome], bool]
) -> float:
    """The part of such requests that is good."""
    of = sum(map(which, all_))
    return round(sum(map(which, good)) / of, 4) if of else 0.0


async def warm(address: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
    """Until the workers are there and predictions have something to rest on."""
    crowd = Crowd(address)
    await crowd.all([Ask(100, 100, 4, headers=headers) for _ in range(32)], at_once=4)
    await crowd.close()


async def load(
    address: str, pids: dict[str, int], loops: dict[str, OpenLoop], headers: tuple[Any, ...] = ()
) -> dict[str, Any]:
    """All loops at once, each with clients of its own, to the end of the last answer."""
    await warm(address, headers)
    crowds = {name: Crowd(address) for name in loops}
    meter = Meter(pids)
    with meter.running():
        await asyncio.gather(*(loops[name].run(crowds[name]) for name in loops))
    for crowd in crowds.values():
        await crowd.close()
    found = {name: summary(loop.outcomes, loop.seconds) for name, loop in loops.items()}
    machine = {
        "busy_elsewhere_cores": round(meter.foreign, 2),
        "lag_ms": round(max(loop.lag_s for loop in loops.values()) * 1e3, 1),
    }
    return found | {"machine": machine}


def one_load(settings: str, factor: float, seconds: float) -> dict[str, Any]:
    """One kind of client against one setting."""
    loop = OpenLoop(factor * CAPACITY_PER_S, seconds, Mix(1), seed=1)
    with fleet(settings, *MOCK) as (address, pids):
        found = asyncio.run(load(address, pids, {"all": loop}))
    return {**found["all"], **found["machine"]}


def order(seconds: float) -> dict[str, Any]:
    """Both orders at the load of a busy hour."""
    found = {name: one_load(text, BUSY, seconds) for name, text in SETTINGS.items()}
    p99 = {name: one["ttft_ms"]["short"]["p99"] for name, one in found.items()}
    print(f"order: short prompts' P99 TTFT {p99} ms", flush=True)
    return {
        "factor": BUSY,
        "short_p99_ratio": round(p99["arrival"] / max(p99["dopd"], 1), 2),
        "settings": found,
    }


def overload(seconds: float) -> dict[str, Any]:
    """Goodput as the load grows."""
    found: dict[str, Any] = {}
    for name, text in SETTINGS.items():
        loads = {str(factor): one_load(text, factor, seconds) for factor in FACTORS}
        goodput = [one["goodput_per_s"] for one in loads.values()]
        print(f"overload, {name}: goodput {goodput}/s at {FACTORS}", flush=True)
        kept = round(goodput[-1] / max(*goodput, 0.01), 3)
        found[name] = {"loads": loads, "share_of_peak_at_most": kept}
    return found


def tenants(seconds: float) -> dict[str, Any]:
    """The steady one alone, beside the flood, and beside it without shares."""

    def loops(with_flood: bool) -> dict[str, OpenLoop]:
        rates = {"steady": CAPACITY_PER_S / 6}
        if with_flood:
            rates["flood"] = 3 * CAPACITY_PER_S
        return {
            name: OpenLoop(rate, seconds, Mix(2, bearer(name)), 2) for name, rate in rates.items()
        }

    keys = "".join(
        f'\n[[key]]\nname = "{name}"\ntenant = "{name}"\nsha256 = "{digest(key)}"\n'
        for name, key in KEYS.items()
    )
    runs = {
        "alone": (TARGETS + keys, False),
        "beside the flood": (TARGETS + keys, True),
        "without shares": (TARGETS + "\n[policy]\nshare_tenants = false\n" + keys, True),
    }
    found = {}
    for name, (settings, with_flood) in runs.items():
        with fleet(settings, *MOCK) as (address, pids):
            which = loops(with_flood)
            found[name] = asyncio.run(load(address, pids, which, bearer("steady")))
        one = found[name]["steady"]
        print(f"tenants, {name}: steady {one['attainment']} in time", flush=True)
    return found


def bearer(name: str) -> tuple[tuple[str, str], ...]:
    """The header with a tenant's key."""
    return (("authorization", f"Bearer {KEYS[name]}"),)


def digest(key: str) -> str:
    """A key as the settings have it."""
    return hashlib.sha256(key.encode()).hexdigest()


PARTS = {"order": order, "overload": overload, "tenants": tenants}


def main(argv: list[str]) -> int:
    """Measure and write it down."""
    parser = argparse.ArgumentParser(prog="python -m bench.policy")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each load")
    parser.add_argument("--only", choices=list(PARTS), help="one part")
    args = parser.parse_args(argv)
    names = [args.only] if args.only else list(PARTS)
    result = {
        "workers": WORKERS,
        "timings": f"{TIMINGS} (a cost model)",
        "capacity_per_s": CAPACITY_PER_S,
        "seconds_each": args.seconds,
        "answer_tokens": ANSWER,
        "targets": {"ttft_ms": TTFT_MS, "per_1k": TTFT_MS_PER_1K, "tpot_ms": TPOT_MS},
        "binary": binary("dopd-router").parent.name,
    }
    return finish("policy", result | {name: PARTS[name](args.seconds) for name in names})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
