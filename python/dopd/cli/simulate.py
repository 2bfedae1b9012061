"""simulate: what every policy is worth on a trace, with the brain that serves. All simulated."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dopd.cli import console

# Of the built-in calibrations; both have the same context.
MODELS = ("llama-3.1-8b", "llama-70b")
CONTEXT_TOKENS = 131_072
SHARES = (80, 90, 99)
RATE_MAX = 10_000.0
JOBS = 2
EPILOG = """\
TRACE is a file (CSV of Azure, ServeGen, BurstGPT; JSON lines of Mooncake; gzip or plain) or
  poisson:rate=8,prompt=1024,output=128~0.7,seconds=600   ~0.7: lognormal, 2..8: drifts
  gamma:rate=8,cv=3,prompt=1024,output=128                bursts
  shift:a=FILE,b=FILE,rate=8,seconds=300,rounds=2         lengths change abruptly
  minutes:shape=FILE,rate=8,lengths=FILE                  load minute by minute

GOOD: requests that met both targets; LONG: the same of the longest tenth of prompts; TTFT and TPOT
in ms; BUSY: workers' time in steps. All figures are simulated.

exit codes: 0 done, 1 failed, 2 usage or a bad trace, 130 interrupted"""


def run(argv: list[str]) -> int:
    """Simulate and print the table."""
    args = parse(argv[1:])
    from dopd.errors import DopdError
    from dopd.sim import study

    try:
        return _run(args)
    except console.CommandError:
        raise
    except DopdError as error:
        fix = "dopd simulate --help"
        if "policy" in str(error):
            fix = f"--policy all, or of {', '.join((*study.ALL, 'dopd*'))}"
        raise console.CommandError(str(error), fix=fix, code=console.USAGE) from error


def parser() -> argparse.ArgumentParser:
    """The options of `dopd simulate`."""
    made = console.parser("simulate", "What every policy is worth on a trace. Simulated.")
    made.epilog = EPILOG
    made.add_argument("trace", metavar="TRACE", help="a trace file, or what one is made of")
    _fleet(made.add_argument_group("fleet"))
    _policy(made.add_argument_group("policy and targets"))
    _load(made.add_argument_group("load"))
    out = made.add_argument_group("output")
    out.add_argument("--json", metavar="OUT", help="the report as JSON; - instead of the table")
    out.add_argument(
        "--plot", metavar="OUT", help="pictures: .svg, or .png (pip install dopd[bench])"
    )
    return made


def _fleet(group: Any) -> None:
    group.add_argument(
        "--fleet", type=fleet, default=("h100", 8), metavar="KIND:N", help="(default: h100:8)"
    )
    group.add_argument("--model", default=MODELS[0], choices=MODELS, help="(default: %(default)s)")
    group.add_argument("--timings", metavar="FILE", help="a calibration instead of the built-in")
    group.add_argument(
        "--penalty",
        type=number(0, 10),
        metavar="X",
        help="what a mixed step costs above the sum; 0.2: a fifth (default: the calibration's)",
    )
    group.add_argument("--prefix-cache", action="store_true", help="workers keep prefixes")


def _policy(group: Any) -> None:
    group.add_argument(
        "--policy",
        default="all",
        metavar="NAME[,NAME]",
        help="all, or dopd, dopd-K, dopd* (best K), static, static-P:D, static-fcfs, agg-N, "
        "agg-dyn, pull-dyn, hybrid, hybrid-K, ... (default: %(default)s)",
    )
    group.add_argument(
        "--rule",
        type=rule,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a rule of the policy that differs: fair_ratio=0, step.mode=chunk_in_time; repeatable",
    )
    ms = number(0.001, 3_600_000)
    group.add_argument("--slo-ttft-ms", type=ms, metavar="MS", help="target of the first token")
    group.add_argument("--slo-tpot-ms", type=ms, metavar="MS", help="target per later token")


def _load(group: Any) -> None:
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--rate",
        type=number(1e-3, RATE_MAX),
        default=1.0,
        metavar="X",
        help="so many times the rate of the trace; drift keeps its speed (default: 1)",
    )
    either.add_argument(
        "--find-rate",
        type=int,
        choices=SHARES,
        metavar="PERCENT",
        help="the highest rate at which so many requests meet both targets: 80, 90 or 99",
    )
    group.add_argument("--seconds", type=number(1e-3, 1e8), metavar="S", help="only the first S")
    group.add_argument(
        "--max-tokens",
        type=whole,
        default=0,
        metavar="N",
        help="what requests ask for (default: the longest answer of the trace)",
    )
    group.add_argument("--seed", type=whole, default=1, help="(default: %(default)s)")
    group.add_argument(
        "--jobs", type=whole, default=JOBS, metavar="N", help="runs side by side (default: 2)"
    )


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of the command line, checked."""
    made = parser()
    args = made.parse_args(argv)
    from dopd.sim.plot import SUFFIXES

    if args.plot and Path(args.plot).suffix not in SUFFIXES:
        made.error(f"--plot {args.plot}: must end in {' or '.join(SUFFIXES)}")
    if args.plot and Path(args.plot).suffix == ".png" and find_spec("matplotlib") is None:
        made.error(f"--plot {args.plot}: needs Matplotlib; pip install 'dopd[bench]', or name .svg")
    for name in ("json", "plot"):
        if (path := getattr(args, name)) and path != "-" and (wrong := unwritable(Path(path))):
            made.error(f"--{name} {path}: {wrong}")
    if not 1 <= args.jobs <= 64:
        made.error(f"--jobs {args.jobs}: must be 1 to 64")
    return args


def unwritable(path: Path) -> str | None:
    """Why no file can be written there, as far as that shows before minutes of runs."""
    if not path.parent.is_dir():
        return f"no folder {path.parent}"
    if path.is_dir():
        return "is a folder; name a file in it"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return "cannot be written: permission denied"
    return None


def fleet(text: str) -> tuple[str, int]:
    """`h100:8`."""
    kind, _, count = text.partition(":")
    if not kind or not count.isdecimal() or not 1 <= int(count) <= 4096:
        raise argparse.ArgumentTypeError(f"{text!r} must be KIND:COUNT, such as h100:8 (1 to 4096)")
    return kind, int(count)


def rule(text: str) -> tuple[list[str], Any]:
    """`step.mode=fill`: the path of a field of the policy, and its value (JSON, or a word)."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE, such as fair_ratio=0")
    try:
        return name.split("."), json.loads(value)
    except ValueError:
        return name.split("."), value


def whole(text: str) -> int:
    """A whole number of 32 bits."""
    if not text.isdecimal() or int(text) >= 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number below {1 << 32}")
    return int(text)


def number(low: float, high: float) -> Callable[[str], float]:
    """A number within limits."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} must be a number from {low:g} to {high:g}")
        return value

    return read


def _run(args: argparse.Namespace) -> int:
    from dopd.errors import DopdError
    from dopd.sim import load, study

    trace = load(args.trace, seed=args.seed)
    if args.seconds is not None:
        trace = trace.first(args.seconds)
    if not len(trace):
        raise console.CommandError(f"no request within {args.seconds} s", code=console.USAGE)
    _note_oddities(trace)
    names = list(study.ALL) if args.policy == "all" else args.policy.split(",")
    more: dict[str, Any] = {"rate": args.rate}
    if args.find_rate is None:
        trace = trace.scaled(args.rate, seed=args.seed) if args.rate != 1 else trace
    else:
        more = {"share": args.find_rate / 100}
    rows = _rows(args, trace, names)
    document = study.document(trace, rows, options(args) | _about(args), **more)
    if args.json == "-":
        console.say(json.dumps(document))
    else:
        console.say(render(document))
        if args.json:
            _write(args.json, json.dumps(document, indent=1) + "\n")
    if args.plot:
        from dopd.sim import plot

        try:
            plot.save(study.picture(document), args.plot)
        except DopdError as error:
            raise console.CommandError(str(error)) from error
    if study.is_too_easy(document):
        console.note(
            "every policy meets nearly all targets at this load: --find-rate 90 (or --rate 10) "
            "tells them apart"
        )
    return console.OK


def _note_oddities(trace: Any) -> None:
    """Rows that were left out, and requests that have more tokens than the model takes."""
    if trace.skipped_rows:
        console.note(f"{trace.skipped_rows} rows left out: their requests failed at the source")
    found = {name: memoryview(data).cast("q") for name, data in trace.raw.columns()}
    both = zip(found["prompt_tokens"], found["output_tokens"], strict=True)
    if longer := sum(prompt + output > CONTEXT_TOKENS for prompt, output in both):
        console.note(
            f"{longer} requests are longer than the context of {CONTEXT_TOKENS} tokens: a server "
            "refuses them, here they are computed"
        )


def options(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `sim.simulate`."""
    device, workers = args.fleet
    rules: dict[str, Any] = {}
    for path, value in args.rule:
        inner = rules
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                whole = f"--rule {'.'.join(path)}: {part} has a value already"
                raise console.CommandError(whole, code=console.USAGE)
        inner[path[-1]] = value
    return {
        "rules": rules,
        "workers": workers,
        "device": device,
        "model": args.model,
        "timings": args.timings,
        "slo_ttft_ms": args.slo_ttft_ms,
        "slo_tpot_ms": args.slo_tpot_ms,
        "mixed_penalty": args.penalty,
        "prefix_cache": args.prefix_cache,
        "max_tokens": args.max_tokens,
        "seed": args.seed,
    }


def _about(args: argparse.Namespace) -> dict[str, Any]:
    from dopd import __version__

    return {"seconds": args.seconds, "dopd": __version__}


def _rows(args: argparse.Namespace, trace: Any, names: list[str]) -> list[dict[str, Any]]:
    from dopd.sim import study
    from dopd.sim.pool import Pool
    from dopd.sim.progress import Progress

    chosen = options(args)
    workers = chosen["workers"]

    def work(name: str) -> dict[str, Any]:
        if args.find_rate is None:
            return study.judge(trace, name, chosen, workers)
        return study.find(trace, name, args.find_rate / 100, chosen, workers)

    rows: list[dict[str, Any]] = []
    try:
        with Progress("policies", len(names)) as progress, Pool(args.jobs) as pool:
            for row in pool.map(work, names):
                rows.append(row)
                if sys.stderr.isatty():
                    progress.advance(row["name"])
    except KeyboardInterrupt:
        console.note(
            f"interrupted: {len(rows)} of {len(names)} policies were done; nothing written"
        )
        raise
    return rows


def render(document: dict[str, Any]) -> str:
    """A headline and a line per policy, the best first."""
    from dopd.sim import study

    found, options = document["trace"], document["options"]
    rows = document["policies"]
    has_rate = "share" in document
    rows = sorted(
        rows,
        key=lambda row: (-row.get("factor", 0), -row["figures"]["attainment"]["overall"]),
    )
    lines: list[tuple[str, ...]] = [study.HEADER, *map(study.cells, rows)]
    if has_rate:
        rates = ["RATE", *(f"x{row['factor']:.2f}" for row in rows)]
        lines = [(line[0], rate, *line[1:]) for line, rate in zip(lines, rates, strict=True)]
    header, *body = lines
    head = (
        f"{found['name']}: {found['requests']} requests on {options['workers']} x "
        f"{options['device']}, {options['model']}, {study.targets(document)}; simulated"
    )
    if has_rate:
        share = 100 * document["share"]
        head += f"\nhighest rate at {share:.0f} % attainment, and what it is like there"
    right = frozenset(range(1, len(header)))
    return f"{head}\n\n{console.table(header, body, right=right)}"


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise console.CommandError(f"{path} cannot be written: {reason}") from error
