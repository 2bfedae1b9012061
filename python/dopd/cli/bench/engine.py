"""bench engine: time the steps of an engine on this device and write its calibration.

The calibration is what the brain predicts with: `dopd worker --timings FILE` tells it in the hello,
`dopd simulate --timings FILE` simulates that device.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dopd.cli import console
from dopd.errors import ConfigError, DopdError

if TYPE_CHECKING:
    from dopd.engine.base import Engine
    from dopd.engine.fit import Fit
    from dopd.engine.foresight import Foresight
    from dopd.engine.measure import Cell, Plan, Shape

EPILOG = """\
Prompts by length, decoding by batch and context, both in one step, and pages from one process to
another: each is timed --repeat times, in turns. The calibration is the router's cost model fitted
to them; "off" is how far it is from what was measured. Nothing else should use the device then.

Every further option is one of `dopd worker`: --model or --mock, --device, --dtype, --kv-memory, ...

  dopd bench engine --model ./Llama-3.1-8B-Instruct --out h100.json
  dopd worker --timings h100.json ...
  dopd simulate trace.csv --timings h100.json
"""
REPEAT_MAX = 1000
# Of a hand-off: shipments of so many tokens.
HANDOFF_TOKENS = (16, 512, 2048)
# Bytes in either half of the probe's pool at most.
HANDOFF_BYTES_MAX = 256 << 20
NOBODY = ("--role", "mixed", "--join", "127.0.0.1:1", "--name", "bench")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = console.parser("bench engine", "Time the steps of an engine, and write its calibration.")
    made.epilog = EPILOG
    how = made.add_argument_group("measurement")
    add = how.add_argument
    add("--repeat", type=int, default=5, metavar="N", help="times of each step (default: 5)")
    add("--quick", action="store_true", help="fewer, smaller steps: a minute on a CPU")
    add(
        "--step-seconds-max",
        type=float,
        default=10.0,
        metavar="S",
        help="leave out steps that take longer (default: 10)",
    )
    add("--transport", metavar="NAME", help="of the hand-off, or none (default: the best there is)")
    report = made.add_argument_group("report")
    report.add_argument("--out", type=Path, metavar="FILE", help="write the calibration here")
    report.add_argument("--json", metavar="FILE", help="all that was measured; - for stdout")
    return made


def run(argv: list[str]) -> int:
    """Measure, print, write."""
    args, of_engine = parser().parse_known_args(argv)
    args.engine = of_engine
    _check(args)
    engine = _load(args)
    cells, left_out, ahead = _measure(args, engine)
    from dopd.engine.fit import fit

    found = fit(engine.model, cells)
    handoff = _handoff(args, engine)
    if handoff:
        found = replace(
            found,
            timings=replace(
                found.timings,
                handoff_bytes_per_s=handoff["bytes_per_s"],
                handoff_fixed_us=handoff["fixed_us"],
            ),
        )
    document = _document(args, engine, cells, left_out, found, handoff)
    document["planned_ahead"] = {"hits": ahead.hits, "misses": ahead.misses}
    if args.out:
        args.out.write_text(found.timings.to_json() + "\n", encoding="utf-8")
    if args.json == "-":
        console.say(json.dumps(document))
        return console.OK
    if args.json:
        Path(args.json).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    console.say(_render(engine, cells, left_out, found, handoff))
    if timed := ahead.hits + ahead.misses:
        console.say(f"planned ahead, as when it serves: {ahead.hits} of {timed} decode steps")
    if args.out:
        console.note(f"calibration written: {args.out}")
    return console.OK


def _check(args: argparse.Namespace) -> None:
    if not 1 <= args.repeat <= REPEAT_MAX:
        raise _usage(f"--repeat is {args.repeat}, must be 1 to {REPEAT_MAX}")
    if not args.step_seconds_max > 0:
        raise _usage(f"--step-seconds-max is {args.step_seconds_max:g}, must be above 0")
    for path in (args.out, args.json):
        if path and str(path) != "-" and not Path(path).resolve().parent.is_dir():
            raise _usage(f"{path} cannot be written: its folder is not there")


def _usage(message: str) -> console.CommandError:
    return console.CommandError(message, fix="dopd bench engine --help", code=console.USAGE)


def _load(args: argparse.Namespace) -> Engine:
    from dopd.worker import args as worker
    from dopd.worker.build import make_engine

    try:
        # Nobody is joined: what a worker needs to join is made up.
        return make_engine(worker.parse([*NOBODY, *args.engine], join_token="none"))
    except ConfigError as error:
        raise _usage(str(error)) from error


def _plan(args: argparse.Namespace) -> Plan:
    from dopd.engine.measure import Plan

    if not args.quick:
        return Plan()
    return Plan(
        chunks=(1, 16, 64, 256, 512, 1024),
        later=((64, 512), (256, 512)),
        batches=(1, 8, 32),
        contexts=(128, 1024),
        mixed=((8, 128, 256), (32, 128, 512)),
    )


def _measure(
    args: argparse.Namespace, engine: Engine
) -> tuple[list[Cell], dict[Shape, str], Foresight]:
    from dopd.bar import Bar
    from dopd.engine.measure import Steps, measure

    steps = Steps(engine)
    with Bar("steps", 1.0) as bar:
        cells, left_out = measure(
            steps,
            list(_plan(args).shapes()),
            repeat=args.repeat,
            step_us_max=args.step_seconds_max * 1e6,
            on_step=bar.show,
        )
    return cells, left_out, steps.ahead


def _handoff(args: argparse.Namespace, engine: Engine) -> dict[str, Any] | None:
    """Fixed time and bandwidth of a hand-off, from shipments of several lengths."""
    from dopd.worker.handoff_probe import Place, pair

    if args.transport == "none":
        return None
    page_bytes, page_size = engine.geometry.page_bytes, engine.geometry.page_size
    most = max(1, HANDOFF_BYTES_MAX // page_bytes)
    counts = sorted({min(most, -(-tokens // page_size)) for tokens in HANDOFF_TOKENS})
    device = "cpu" if engine.device in ("cpu", "mock") else engine.device.split()[0]
    try:
        with pair(args.transport or "auto", Place(page_bytes, 2 * counts[-1], device)) as source:
            took = {
                count: statistics.median(source.seconds(1, count) for _ in range(4 * args.repeat))
                for count in counts
            }
            transport = source.transport
    except DopdError as error:
        if args.transport:
            raise
        console.note(f"hand-off not timed: {error}")
        return None
    least, greatest = counts[0], counts[-1]
    per_page_s = (took[greatest] - took[least]) / max(1, greatest - least)
    fixed_s = max(0.0, took[least] - least * max(0.0, per_page_s))
    return {
        "transport": transport,
        "seconds_by_pages": {str(count): seconds for count, seconds in took.items()},
        # 0: as fast as can be told, which one page alone cannot tell.
        "bytes_per_s": page_bytes / per_page_s if per_page_s > 0 else 0.0,
        "fixed_us": 1e6 * fixed_s,
    }


def _document(
    args: argparse.Namespace,
    engine: Engine,
    cells: list[Cell],
    left_out: dict[Shape, str],
    found: Fit,
    handoff: dict[str, Any] | None,
) -> dict[str, Any]:
    return {
        "model": engine.model,
        "device": engine.device,
        "dtype": engine.geometry.dtype,
        "page_size": engine.geometry.page_size,
        "repeat": args.repeat,
        "timings": asdict(found.timings),
        "median_error": found.median_error,
        "cells": [
            asdict(cell.shape)
            | {"us": cell.us, "q1_us": cell.q1_us, "q3_us": cell.q3_us, "count": cell.count}
            | {"error": found.errors[cell.shape], "penalty": found.penalties.get(cell.shape)}
            for cell in cells
        ],
        "left_out": [asdict(shape) | {"reason": reason} for shape, reason in left_out.items()],
        "handoff": handoff,
    }


def _render(
    engine: Engine,
    cells: list[Cell],
    left_out: dict[Shape, str],
    found: Fit,
    handoff: dict[str, Any] | None,
) -> str:
    rows = []
    for cell in cells:
        penalty = found.penalties.get(cell.shape)
        rows.append(
            [
                str(cell.shape),
                f"{cell.us / 1e3:.2f}",
                f"{(cell.q3_us - cell.q1_us) / 1e3:.2f}",
                f"{cell.shape.tokens / cell.us * 1e6:,.0f}",
                f"{found.errors[cell.shape]:+.0%}",
                "" if penalty is None else f"{penalty:+.0%}",
            ]
        )
    header = ["step", "ms", "iqr", "tok/s", "off", "mixed costs"]
    lines = [f"{engine.model} in {engine.geometry.dtype} on {engine.device}", ""]
    lines.append(console.table(header, rows, right=frozenset(range(1, 6))))
    if left_out:
        lines.append(f"left out: {len(left_out)} steps, as {next(iter(left_out.items()))[1]}")
    lines.append(f"\nmixed steps cost {found.timings.mixed_penalty_ratio:.0%} above their parts")
    if handoff:
        rate = f"{handoff['bytes_per_s'] / 1e9:.2f} GB/s" if handoff["bytes_per_s"] else "at once"
        lines.append(f"hand-off over {handoff['transport']}: {handoff['fixed_us']:.0f} us + {rate}")
    lines.append(f"calibration: off by {found.median_error:.0%} (median)")
    return "\n".join(lines)
