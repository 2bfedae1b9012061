"""Two servers under the same load, in turns: dopd beside any other OpenAI server.

The plan is cut into rounds. In each round one server gets its part alone, then the other gets the
same part; who goes first alternates, so that a machine that slows down or warms up favours neither.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from dopd.cli import console
from dopd.cli.bench import report
from dopd.cli.bench.arrivals import Arrival
from dopd.cli.bench.load import Result, Target

Turn = tuple[int, list[Arrival]]
TIMES = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")
COLUMNS = ("mean", "p50", "p90", "p99")
RATES = (
    ("requests/s", "requests_per_s"),
    ("output tokens/s", "output_tokens_per_s"),
)


def turns(plan: list[Arrival], rounds: int) -> list[Turn]:
    """Which server (0 or 1) gets which part of the plan, in order; times of a part start at 0."""
    rounds = min(rounds, len(plan))
    edges = [len(plan) * number // rounds for number in range(rounds + 1)]
    found: list[Turn] = []
    for number in range(rounds):
        part = plan[edges[number] : edges[number + 1]]
        part = [replace(arrival, at_s=arrival.at_s - part[0].at_s) for arrival in part]
        order = (0, 1) if number % 2 == 0 else (1, 0)
        found += [(index, part) for index in order]
    return found


def joined(results: list[Result]) -> Result:
    """The turns of one server as one run: their times add up, the breaks between do not count."""
    start_s = results[0].start_s if results else 0.0
    whole = Result([], start_s, start_s, sum(result.cpu_s for result in results))
    for result in results:
        # One turn after the other on the time axis of a plot, too.
        before_s = whole.end_s - whole.start_s
        whole.samples += [
            replace(sample, arrival=replace(sample.arrival, at_s=sample.arrival.at_s + before_s))
            for sample in result.samples
        ]
        whole.end_s += result.end_s - result.start_s
    return whole


def document(
    args: argparse.Namespace, targets: list[Target], rounds: dict[str, list[Result]]
) -> dict[str, Any]:
    """Figures of both servers, and the first's over the second's."""
    figures = {
        target.label: {"url": target.server.url, "model": target.model}
        | report.figures(args, joined(rounds[target.label]))
        for target in targets
    }
    first, second = (target.label for target in targets)
    each = [
        (report.figures(args, a), report.figures(args, b))
        for a, b in zip(rounds[first], rounds[second], strict=False)
    ]
    names = [name for _, name in RATES] + [f"{t}.{c}" for t in TIMES for c in COLUMNS]
    if figures[first]["goodput"]:
        names.append("goodput.requests_per_s")
    return {
        "bench": "dopd bench --compare",
        "conditions": report.conditions(args) | {"rounds": len(each)},
        "servers": figures,
        "ratios": {name: ratio(name, figures[first], figures[second], each) for name in names},
    }


def ratio(
    name: str,
    first: dict[str, Any],
    second: dict[str, Any],
    each: list[tuple[dict[str, Any], dict[str, Any]]],
) -> dict[str, float] | None:
    """First over second in all rounds together, and the least and the greatest of one round."""
    whole = _divided(name, first, second)
    if whole is None:
        return None
    by_round = [value for a, b in each if (value := _divided(name, a, b)) is not None]
    return {"whole": whole, "least": min(by_round), "greatest": max(by_round)} if by_round else None


def value(name: str, figures: dict[str, Any]) -> float | None:
    """The figure `ttft_ms.p50`, if it was measured."""
    table, _, column = name.partition(".")
    found = figures[table]
    if not column:
        return float(found)
    return None if found is None else float(found[column])


def _divided(name: str, first: dict[str, Any], second: dict[str, Any]) -> float | None:
    a, b = value(name, first), value(name, second)
    return None if a is None or not b else round(a / b, 4)


def render(document: dict[str, Any]) -> str:
    """One table: both servers, their ratio, and its range over the rounds."""
    servers = document["servers"]
    first, second = servers
    rows = []
    for name, found in document["ratios"].items():
        cells = [_shown(value(name, servers[label])) for label in (first, second)]
        span = "-" if found is None else f"{found['whole']:.2f}"
        spread = "" if found is None else f"{found['least']:.2f} to {found['greatest']:.2f}"
        rows.append((_label(name), *cells, span, spread))
    header = ("", first, second, "ratio", "of one round")
    rounds = document["conditions"]["rounds"]
    lines = [
        f"{first} over {second}, the same load in {rounds} rounds, one server at a time",
        *(
            f"{label}: {found['completed']} of {found['sent']} requests completed, "
            f"{found['failed']} failed"
            for label, found in servers.items()
        ),
        "",
        console.table(header, rows, right=frozenset(range(1, 5))),
        "",
    ]
    for label, found in servers.items():
        lines += [f"{label}: {note}" for note in report.notes(found)]
    return "\n".join(lines).rstrip()


def _label(name: str) -> str:
    rates = {key: label for label, key in RATES} | {"goodput.requests_per_s": "goodput/s"}
    labels = {key: label for label, key in report.TIMES}
    table, _, column = name.partition(".")
    return rates.get(name) or f"{labels[table]} {column} ms"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
