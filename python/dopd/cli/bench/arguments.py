"""The options of `dopd bench`. Names that users of `vllm bench serve` type work too."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dopd.cli import console, options

EPILOG = """\
Requests are sent at their own times, whether or not earlier ones have ended (open loop), and times
count from the moment a request was due. With --rate inf there are always --concurrency open
requests, and times count from the moment one was sent. Prompts are token ids and answers have
exactly the asked length, unless --chat or --dataset says otherwise.

--compare runs the same load on two servers in turns (first, second, second, first, ...), one
server at a time, so that neither has the better machine or the better minute.

`dopd bench engine` times the steps of a model on this machine instead, and calibrates dopd by them.

  dopd bench --rate 20 --duration 30 --prompt-tokens 512 --output-tokens 128
  dopd bench --rate inf --concurrency 64 --requests 500 --json
  dopd bench --trace trace.csv.gz --speed 2 --slo-ttft-ms 500 --slo-tpot-ms 50 --plot load.svg
  dopd bench --compare http://127.0.0.1:9000 --rate 10 --requests 400 --plot both.png
"""
GOALS = {"ttft": "slo_ttft_ms", "tpot": "slo_tpot_ms", "e2el": "slo_e2e_ms"}


def parse(argv: list[str]) -> argparse.Namespace:
    """The options, checked."""
    made = parser()
    args = made.parse_args(argv)
    if args.requests is None and args.duration is None and not (args.trace or args.dataset):
        args.requests = 100
    if args.trace and args.dataset:
        made.error("--trace and --dataset are two loads; give one")
    if args.rate == float("inf") and args.requests is None and not args.dataset:
        made.error("--rate inf needs --requests: there is no time to count --duration by")
    for goal in args.goodput or ():
        name, _, value = goal.partition(":")
        if name not in GOALS:
            made.error(f"--goodput {goal}: allowed are {', '.join(GOALS)}, as in ttft:500")
        try:
            setattr(args, GOALS[name], positive(value))
        except (ValueError, argparse.ArgumentTypeError):
            made.error(f"--goodput {goal}: {value!r} is no time in ms above zero, as in ttft:500")
    return args


def parser() -> argparse.ArgumentParser:
    """All of them, in groups."""
    made = console.parser("bench", "Load a running server and measure what its clients see.")
    made.epilog = EPILOG
    options.add_server(made)
    _add_target(made.add_argument_group("what is asked"))
    _add_load(made.add_argument_group("load"))
    _add_files(made.add_argument_group("load from a file"))
    _add_compare(made.add_argument_group("comparison"))
    _add_report(made.add_argument_group("report"))
    return made


def _add_target(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", help="name of the model (default: the one served)")
    group.add_argument(
        "--chat", action="store_true", help="/v1/chat/completions instead of /v1/completions"
    )
    group.add_argument(
        "--extra-body",
        type=json_object,
        default={},
        metavar="JSON",
        help="fields for every request; null takes one away, as in '{\"ignore_eos\": null}'",
    )


def _add_load(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        *("--rate", "--request-rate"),
        type=rate,
        default=10.0,
        metavar="R",
        help="arrivals per second, or inf (default: 10)",
    )
    add(
        "--burstiness",
        type=positive,
        default=1.0,
        metavar="B",
        help="1 is Poisson, less comes in bursts, more is even (default: 1)",
    )
    add(
        *("--requests", "--num-prompts"),
        type=count,
        metavar="N",
        help="number of requests (default: 100)",
    )
    add("--duration", type=positive, metavar="S", help="seconds of arrivals")
    add(
        *("--prompt-tokens", "--input-len", "--random-input-len"),
        type=count,
        default=128,
        metavar="N",
        help="(default: %(default)s)",
    )
    add(
        *("--output-tokens", "--output-len", "--random-output-len"),
        type=count,
        default=32,
        metavar="N",
        help="(default: %(default)s)",
    )
    add(
        *("--range-ratio", "--random-range-ratio"),
        type=share,
        default=0.0,
        metavar="X",
        help="lengths vary evenly by this share to both sides (default: 0)",
    )
    add("--seed", type=int, default=1, metavar="N", help="(default: %(default)s)")
    add(
        *("--warmup", "--num-warmups"),
        type=count0,
        default=2,
        metavar="N",
        help="requests before the clock (default: %(default)s)",
    )
    add(
        *("--concurrency", "--max-concurrency", "--concurrency-max"),
        type=count,
        default=2048,
        metavar="N",
        help="open requests; more wait here and the report says so (default: %(default)s)",
    )
    add("--timeout", type=positive, default=600.0, metavar="S", help="for a request (default: 600)")


def _add_files(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--trace",
        type=Path,
        metavar="FILE",
        help="arrivals and lengths instead: csv with arrival_s, prompt_tokens, output_tokens, or "
        "jsonl with timestamp (ms), input_length, output_length; either may be .gz",
    )
    add(
        *("--dataset", "--dataset-path"),
        type=Path,
        metavar="FILE",
        help='prompts instead: jsonl with "prompt" and "output_tokens", or ShareGPT\'s json',
    )
    add("--speed", type=positive, default=1.0, help="divides the trace's times (default: 1)")


def _add_compare(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--compare", metavar="URL", help="a second OpenAI server, for the same load")
    add("--compare-model", metavar="NAME", help="its model (default: the one served)")
    add("--compare-api-key", metavar="KEY", help="its key (default: DOPD_COMPARE_API_KEY)")
    add(
        "--rounds",
        type=count,
        default=4,
        metavar="N",
        help="turns of each server (default: %(default)s)",
    )


def _add_report(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--slo-ttft-ms", type=positive, metavar="MS", help="target for TTFT")
    add("--slo-tpot-ms", type=positive, metavar="MS", help="target for TPOT")
    add("--slo-e2e-ms", type=positive, metavar="MS", help="target for the whole answer")
    add("--goodput", nargs="+", metavar="GOAL", help="the same as vLLM writes it: ttft:500 tpot:50")
    add(
        "--json",
        nargs="?",
        const="-",
        metavar="OUT",
        help="the report as JSON and nothing else; with a file, there, with every request",
    )
    add(
        *("--plot", "--png"),
        type=Path,
        metavar="OUT",
        help="draw it: .png, .svg or .pdf (extra dopd[bench])",
    )


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text} is no JSON object")
    return found


def positive(text: str) -> float:
    """A finite number above zero."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return value


def rate(text: str) -> float:
    """A number above zero, or inf."""
    return float("inf") if text == "inf" else positive(text)


def share(text: str) -> float:
    """A number from 0 to less than 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to less than 1")
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
