"""bench: load a running server with requests at their own times and measure what clients see."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dopd.cli import console, http

EPILOG = """\
Requests are sent at their own times, whether or not earlier ones have ended (open loop), and times
count from the moment a request was due. Prompts are token ids, answers have exactly the asked
length. The last line on stdout is one JSON document.

  dopd bench --rate 20 --duration 30 --prompt-tokens 512 --output-tokens 128
  dopd bench --trace trace.csv.gz --speed 2 --slo-ttft-ms 500 --slo-tpot-ms 50 --png load.png
"""


def run(argv: list[str]) -> int:
    """Run one load and print its report; the exit code is 1 if any request failed."""
    args = parse(argv[1:])
    from dopd.cli.bench import arrivals, load, report

    report.check_outputs(args)
    plan = arrivals.plan(args)
    http.Server(args.url).connect(http.TIMEOUT_S).close()
    result = load.run(args, plan)
    document = report.document(args, plan, result)
    console.say(report.render(document))
    if args.png:
        report.draw(args.png, args, result)
    if args.json:
        whole = document | {"requests": report.requests(result)}
        args.json.write_text(json.dumps(whole, indent=1) + "\n")
    console.say(json.dumps(document))
    return console.OK if document["failed"] == 0 else console.FAILED


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of `dopd bench`, checked."""
    parser = argparse.ArgumentParser(
        prog="dopd bench",
        description="Load a running server and measure it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", default=http.DEFAULT_URL, help="(default: %(default)s)")
    parser.add_argument("--model", help="name of the model (default: the one served)")
    _add_load(parser.add_argument_group("load"))
    _add_report(parser.add_argument_group("report"))
    args = parser.parse_args(argv)
    if args.requests is None and args.duration is None and args.trace is None:
        args.requests = 100
    return args


def _add_load(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--rate", type=positive, default=10.0, help="Poisson arrivals per second (default: 10)"
    )
    group.add_argument("--requests", type=count, help="number of requests (default: 100)")
    group.add_argument("--duration", type=positive, metavar="S", help="seconds of arrivals")
    group.add_argument("--prompt-tokens", type=count, default=128, help="(default: %(default)s)")
    group.add_argument("--output-tokens", type=count, default=32, help="(default: %(default)s)")
    group.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="arrivals and lengths instead: csv with arrival_s, prompt_tokens, output_tokens, or "
        "jsonl with timestamp (ms), input_length, output_length; either may be .gz",
    )
    group.add_argument(
        "--speed", type=positive, default=1.0, help="divides the trace's times (default: 1)"
    )
    group.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    group.add_argument(
        "--warmup", type=count0, default=2, help="requests before the clock (default: %(default)s)"
    )
    group.add_argument(
        "--concurrency-max",
        type=count,
        default=2048,
        help="open requests; more wait here and the report says so (default: %(default)s)",
    )
    group.add_argument(
        "--timeout", type=positive, default=600.0, metavar="S", help="for a request (default: 600)"
    )


def _add_report(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--slo-ttft-ms", type=positive, metavar="MS", help="target for TTFT")
    group.add_argument("--slo-tpot-ms", type=positive, metavar="MS", help="target for TPOT")
    group.add_argument(
        "--json", type=Path, metavar="OUT", help="write the report and every request"
    )
    group.add_argument("--png", type=Path, metavar="OUT", help="draw it (extra dopd[bench])")


def positive(text: str) -> float:
    """A finite number above zero."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value


def count(text: str) -> int:
    """A whole number of at least one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def count0(text: str) -> int:
    """A whole number of at least zero."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return value
