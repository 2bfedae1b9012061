"""bench: load a running server and measure what clients see; `bench engine` times the steps of one
engine instead."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from dopd import env
from dopd.cli import console, http, options
from dopd.cli.bench.arguments import parse, parser

__all__ = ["parse", "parser", "run"]


def run(argv: list[str]) -> int:
    """Run one load and print its report; the exit code is 1 if any request failed, 130 if Ctrl-C
    ended it."""
    if argv[1:2] == ["engine"]:
        from dopd.cli.bench import engine

        return engine.run(argv[2:])
    args = parse(argv[1:])
    from dopd.cli.bench import arrivals, load, report

    report.check_outputs(args)
    plan = arrivals.plan(args)
    targets = [load.Target.of(options.server(args), args.model)]
    if args.compare:
        key = args.compare_api_key or env.get("COMPARE_API_KEY")
        other = http.Server(args.compare, key)
        second = load.Target.of(other, args.compare_model)
        if second.label == targets[0].label:
            # A server beside itself shows the noise of a machine.
            second = replace(second, label=f"{second.label} again")
        targets.append(second)
        return _compare(args, plan, targets)
    result = load.run(args, targets[0], plan)
    document = report.document(args, targets[0], result) | {"planned": len(plan)}
    if args.json != "-":
        console.say(report.render(document))
    _write(args, document, {"requests": report.requests(result)})
    if args.plot:
        from dopd.cli.bench import plot

        plot.draw(args, {targets[0].label: result})
    return _code(len(plan), [document])


def _code(planned: int, servers: list[dict[str, Any]]) -> int:
    """The exit code, with a word about what was never sent."""
    sent = min(server["sent"] for server in servers)
    if sent < planned:
        console.note(f"interrupted: {sent} of {planned} requests were sent")
        return console.INTERRUPTED
    return console.FAILED if any(server["failed"] for server in servers) else console.OK


def _compare(args: argparse.Namespace, plan: list[Any], targets: list[Any]) -> int:
    from dopd.cli.bench import compare, load, report

    rounds = load.run_rounds(args, targets, compare.turns(plan, args.rounds))
    document = compare.document(args, targets, rounds) | {"planned": len(plan)}
    if args.json != "-":
        console.say(compare.render(document))
    requests = {
        target.label: report.requests(compare.joined(rounds[target.label])) for target in targets
    }
    _write(args, document, {"requests": requests})
    if args.plot:
        from dopd.cli.bench import plot

        plot.draw(args, {label: compare.joined(found) for label, found in rounds.items()})
    return _code(len(plan), list(document["servers"].values()))


def _write(args: argparse.Namespace, document: dict[str, Any], requests: dict[str, Any]) -> None:
    from dopd.cli.bench import report

    if args.json == "-":
        console.say(json.dumps(document))
    elif args.json:
        text = json.dumps(document | requests, indent=1) + "\n"
        with report.writing(args.json):
            Path(args.json).write_text(text)
