"""Several policies on one trace: which names, what each is worth, as rows, table and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dopd.sim.find import TOLERANCE, find_rate
from dopd.sim.plot import Bars, Figure, Lines
from dopd.sim.plot.figure import COLOURS, GREY
from dopd.sim.runs import TTFT_PREFILL_RATIO, Result, simulate
from dopd.sim.trace import Trace

VERSION = 1
# Splits that `static` tries; more workers are tried at even distances.
SPLITS_MAX = 7
ALL = ("dopd", "dopd*", "static", "static-fcfs", "agg-512", "agg-dyn", "pull-dyn", "hybrid")
# Names that stand for the best of several counts of labels.
FAMILIES = {
    "dopd*": "dopd-{p}",
    "hybrid": "hybrid-{p}",
    "static": "static-{p}:{d}",
    "static-fcfs": "static-{p}:{d}-fcfs",
    "static-sjf": "static-{p}:{d}-sjf",
    "static-edf": "static-{p}:{d}-edf",
}
LINES_MAX = len(COLOURS)
# Above this share of good requests a policy has nothing to show.
EASY = 0.99

Row = dict[str, Any]
Tell = Callable[[str], None]


def members(name: str, workers: int) -> list[str]:
    """The policies that `name` stands for: itself, or every split of a family."""
    pattern = FAMILIES.get(name)
    if pattern is None or workers < 2:
        return [pattern.format(p=0, d=1) if pattern else name]
    count = min(workers - 1, SPLITS_MAX)
    splits = sorted({round(1 + (workers - 2) * at / max(count - 1, 1)) for at in range(count)})
    return [pattern.format(p=p, d=workers - p) for p in splits]


def judge(
    trace: Trace, name: str, options: dict[str, Any], workers: int, guess: int | None = None
) -> Row:
    """The best member of `name` by attainment at the trace's own rate, in figures."""
    runs: dict[str, Result] = {}

    def worth(policy: str, best: float) -> float:
        del best
        runs[policy] = simulate(trace, policy=policy, **options)
        return runs[policy].attainment

    policy, _ = climb(members(name, workers), worth, guess)
    return row(name, policy, runs[policy])


def climb(
    found: Sequence[str], worth: Callable[[str, float], float], guess: int | None = None
) -> tuple[str, float]:
    """The best of neighbours, uphill from the place `guess` (the middle): splits have one peak.

    `worth(policy, best)` may give anything not above `best` for what is no better.
    """
    at = min(len(found) // 2 if guess is None else guess, len(found) - 1)
    best = worth(found[at], 0.0)
    for step in (1, -1):
        start = at
        while 0 <= at + step < len(found):
            value = worth(found[at + step], best)
            if value <= best:
                break
            at, best = at + step, value
        if at != start:
            break
    return found[at], best


def row(name: str, policy: str, result: Result) -> Row:
    """One line of the table."""
    return {
        "name": name,
        "policy": policy,
        "wall_s": round(result.wall_s, 3),
        "events": result.events,
        "figures": result.figures,
    }


def find(
    trace: Trace,
    name: str,
    share: float,
    options: dict[str, Any],
    workers: int,
    start: float = 1.0,
    guess: int | None = None,
) -> Row:
    """The best member of `name` by the highest rate factor with `share` attainment."""
    runs: dict[tuple[str, float], Result] = {}
    tries: dict[str, tuple[tuple[float, float], ...]] = {}

    def attained(policy: str, factor: float) -> float:
        if (policy, factor) not in runs:
            scaled = trace.scaled(factor, seed=options["seed"])
            runs[policy, factor] = simulate(scaled, policy=policy, **options)
        return runs[policy, factor].attainment

    def worth(policy: str, best: float) -> float:
        first = best * (1 + TOLERANCE) or start
        if best and attained(policy, first) < share:
            return 0.0
        found = find_rate(lambda factor: attained(policy, factor), share, start=first)
        tries[policy] = found.tries
        return found.factor

    policy, factor = climb(members(name, workers), worth, guess)
    lowest = min(at for at, _ in tries[policy])
    shown = runs[policy, factor if factor else lowest]
    return row(name, policy, shown) | {
        "factor": factor,
        "tries": [list(one) for one in tries[policy]],
    }


def document(trace: Trace, rows: Sequence[Row], options: dict[str, Any], **more: Any) -> Row:
    """The report as one JSON document."""
    return {
        "version": VERSION,
        "simulated": True,
        "trace": {"name": trace.name, "requests": len(trace)},
        "options": options,
        "targets": _targets(options),
        **more,
        "policies": list(rows),
    }


def label(found: Row) -> str:
    """The best member of a family by its own name."""
    return str(found["policy"] if found["name"] in FAMILIES else found["name"])


HEADER = (
    "POLICY", "GOOD", "LONG", "REQ/S", "TOK/S", "TTFT P50", "P90", "P99", "TPOT P50", "P90", "P99",
    "BUSY", "STOLEN", "KEPT", "PREEMPTED", "REFUSED",
)  # fmt: skip


def cells(found: Row) -> tuple[str, ...]:
    """One line of the table; times in ms, shares in percent."""
    figures = found["figures"]
    ttft, tpot, counts = figures["ttft_ms"], figures["tpot_ms"], figures["counts"]
    share = max(counts["requests"], 1) / 100
    return (
        label(found),
        f"{100 * figures['attainment']['overall']:.1f}%",
        f"{100 * figures['attainment']['longest_tenth']:.1f}%",
        f"{figures['goodput']['requests_per_s']:.1f}",
        f"{figures['goodput']['tokens_per_s']:.0f}",
        *(f"{ttft[name]:.0f}" for name in ("p50", "p90", "p99")),
        *(f"{tpot[name]:.1f}" for name in ("p50", "p90", "p99")),
        f"{100 * (1 - figures['utilisation']['idle']):.0f}%",
        f"{counts['stolen'] / share:.0f}%",
        f"{counts['kept'] / share:.0f}%",
        str(counts["preemptions"]),
        f"{counts['refused'] / share:.1f}%",
    )


def picture(found: Row) -> Figure:
    """What a report looks like: attainment, who computed, time to first token, and over time."""
    rows = found["policies"]
    names = [label(one) for one in rows]
    colours = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(names)}
    colours |= {"all requests": COLOURS[0], "longest tenth": COLOURS[4]}
    colours |= dict(zip(("prefill", "decode", "mixed", "idle"), (*COLOURS[1:4], GREY), strict=True))
    figures = [one["figures"] for one in rows]
    percent: list[Bars | Lines] = []
    if all("factor" in one for one in rows):
        title = f"Highest rate at {100 * found['share']:.0f} % attainment"
        factors = {"rate": [one["factor"] for one in rows]}
        percent.append(Bars(title, "times the rate of the trace", names, factors))
    shares = {
        text: [100 * one["attainment"][key] for one in figures]
        for text, key in (("all requests", "overall"), ("longest tenth", "longest_tenth"))
    }
    mark = 100 * found["share"] if "share" in found else None
    title = "Requests that met both targets"
    percent.append(Bars(title, "% of requests", names, shares, mark=mark, limit=100))
    busy = {
        kind: [100 * one["utilisation"][kind] for one in figures]
        for kind in ("prefill", "decode", "mixed", "idle")
    }
    percent.append(
        Bars("What the workers did", "% of their time", names, busy, is_stacked=True, limit=100)
    )
    chosen = list(zip(names, figures, strict=True))[:LINES_MAX]
    over_time = {
        name: ([b["start_s"] for b in f["series"]], [100 * b["attainment"] for b in f["series"]])
        for name, f in chosen
    }
    waits = {
        name: ([b["start_s"] for b in f["series"]], [b["ttft_p90_ms"] for b in f["series"]])
        for name, f in chosen
    }
    lines = [
        Lines(
            "Attainment over time",
            "time of arrival (s)",
            "met both targets (%)",
            over_time,
            mark=mark,
            limit=100,
        ),
        Lines("Time to first token over time", "time of arrival (s)", "TTFT, P90 (ms)", waits),
    ]
    options = found["options"]
    title = f"{found['trace']['name']}, {options['workers']} x {options['device']}, simulated"
    note = f"{options['model']}, {found['trace']['requests']} requests, {targets(found)}"
    return Figure(title, [*percent, *lines], note, colours)


def _targets(options: dict[str, Any]) -> dict[str, float]:
    """What was asked for, else what goes with the model."""
    from dopd import _router

    kinds = {(device, model): ms for device, model, ms in _router.sim_kinds()}
    ttft, tpot = kinds[options["device"], options["model"]]
    return {
        "ttft_ms": ttft if options["slo_ttft_ms"] is None else options["slo_ttft_ms"],
        "ttft_prefill_ratio": TTFT_PREFILL_RATIO,
        "tpot_ms": tpot if options["slo_tpot_ms"] is None else options["slo_tpot_ms"],
    }


def targets(found: Row) -> str:
    """The targets of a document in words."""
    said = found["targets"]
    return (
        f"first token in {said['ttft_ms']:g} ms (or {said['ttft_prefill_ratio']:g} x its prefill), "
        f"later ones in {said['tpot_ms']:g} ms"
    )


def is_too_easy(found: Row) -> bool:
    """Whether this load tells nothing: several policies, and none of them misses targets."""
    shares = [row["figures"]["attainment"] for row in found["policies"]]
    worst = min(share[of] for share in shares for of in ("overall", "longest_tenth"))
    return len(shares) > 1 and "share" not in found and worst >= EASY
