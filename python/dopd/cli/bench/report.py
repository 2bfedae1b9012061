"""What a run showed: percentiles, goodput, errors, a table."""

from __future__ import annotations

import argparse
import collections
import contextlib
import math
import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dopd import __version__
from dopd.cli import console
from dopd.cli.bench.load import Result, Sample, Target

PERCENTILES = (50, 90, 99)
PLOT_SUFFIXES = (".png", ".svg", ".pdf")
# A client that lags more than this measures itself.
LAG_WARN_MS = 20.0
COLUMNS = ("mean", "p50", "p90", "p99", "max")
TIMES = (
    ("TTFT", "ttft_ms"),
    ("TPOT", "tpot_ms"),
    ("ITL", "itl_ms"),
    ("longest gap", "gap_max_ms"),
    ("whole answer", "e2e_ms"),
    ("client lag", "client_lag_ms"),
)


def ttft_ms(sample: Sample) -> float | None:
    """Milliseconds from the due moment to the first token."""
    return None if sample.first_s is None else 1e3 * (sample.first_s - sample.due_s)


def tpot_ms(sample: Sample) -> float | None:
    """Milliseconds per token after the first; None for an answer of one token."""
    if sample.first_s is None or sample.last_s is None or (sample.tokens or 0) < 2:
        return None
    return 1e3 * (sample.last_s - sample.first_s) / ((sample.tokens or 0) - 1)


def e2e_ms(sample: Sample) -> float | None:
    """Milliseconds from the due moment to the last token."""
    return None if sample.last_s is None else 1e3 * (sample.last_s - sample.due_s)


def prompt_tokens(sample: Sample) -> int:
    """As the server counted them, else as they were asked for."""
    return sample.prompt_tokens or sample.arrival.prompt_tokens


def document(args: argparse.Namespace, target: Target, result: Result) -> dict[str, Any]:
    """The report as one JSON document."""
    return {
        "bench": "dopd bench",
        "conditions": conditions(args) | {"url": target.server.url, "model": target.model},
    } | figures(args, result)


def figures(args: argparse.Namespace, result: Result) -> dict[str, Any]:
    """What was measured; times in milliseconds, rates per second."""
    done = [sample for sample in result.samples if sample.is_complete]
    span_s = max(1e-9, result.end_s - result.start_s)
    tokens = sum(sample.tokens or 0 for sample in done)
    lags = [1e3 * (sample.sent_s - sample.due_s) for sample in result.samples if sample.sent_s]
    return {
        "sent": len(result.samples),
        "completed": len(done),
        "failed": sum(sample.error is not None for sample in result.samples),
        "errors": errors(result),
        "duration_s": round(span_s, 3),
        "prompt_tokens": sum(map(prompt_tokens, done)),
        "output_tokens": tokens,
        "requests_per_s": round(len(done) / span_s, 3),
        "prompt_tokens_per_s": round(sum(map(prompt_tokens, done)) / span_s, 1),
        "output_tokens_per_s": round(tokens / span_s, 1),
        "ttft_ms": summary(map(ttft_ms, done)),
        "tpot_ms": summary(map(tpot_ms, done)),
        "itl_ms": summary(1e3 * gap for sample in done for gap in sample.gaps_s),
        "gap_max_ms": summary(1e3 * max(sample.gaps_s, default=0.0) for sample in done),
        "e2e_ms": summary(map(e2e_ms, done)),
        "goodput": goodput(args, result, done, span_s),
        "client_lag_ms": summary(lags),
        "client_cpu_share": round(result.cpu_s / span_s, 3),
    }


def errors(result: Result) -> dict[str, dict[str, Any]]:
    """How many failed by code, most frequent first, with the words of the first of each."""
    failed = [sample for sample in result.samples if sample.error is not None]
    counts = collections.Counter(sample.error_code or "other" for sample in failed)
    return {
        code: {
            "count": count,
            "example": next(s.error for s in failed if (s.error_code or "other") == code),
        }
        for code, count in counts.most_common()
    }


def conditions(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that one needs to run the same load again."""
    # JSON has no infinity.
    rate = "inf" if args.rate == math.inf else args.rate
    load: dict[str, Any] = {"rate": rate, "burstiness": args.burstiness}
    if args.trace:
        load = {"trace": str(args.trace), "speed": args.speed}
    elif args.dataset:
        load |= {"dataset": str(args.dataset)}
    else:
        names = ("prompt_tokens", "output_tokens", "range_ratio")
        load |= {name: getattr(args, name) for name in names}
    others = ("requests", "duration", "chat", "extra_body", "seed", "warmup", "concurrency")
    return (
        load
        | {name: getattr(args, name) for name in others}
        | {
            "dopd": __version__,
            "client": f"{platform.machine()} python {platform.python_version()}",
        }
    )


def goodput(
    args: argparse.Namespace, result: Result, done: list[Sample], span_s: float
) -> dict[str, Any] | None:
    """Requests per second that met every given target, and their share of all that were sent."""
    goals = (
        (ttft_ms, args.slo_ttft_ms),
        (tpot_ms, args.slo_tpot_ms),
        (e2e_ms, args.slo_e2e_ms),
    )
    if all(goal is None for _, goal in goals):
        return None
    good = [
        sample
        for sample in done
        if all(goal is None or (measure(sample) or 0.0) <= goal for measure, goal in goals)
    ]
    return {
        "slo_ttft_ms": args.slo_ttft_ms,
        "slo_tpot_ms": args.slo_tpot_ms,
        "slo_e2e_ms": args.slo_e2e_ms,
        "requests_per_s": round(len(good) / span_s, 3),
        "output_tokens_per_s": round(sum(sample.tokens or 0 for sample in good) / span_s, 1),
        "share": round(len(good) / max(1, len(result.samples)), 4),
    }


def summary(values: Iterable[float | None]) -> dict[str, float] | None:
    """Mean, percentiles and maximum; None if there is no value."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    shown = {"mean": sum(known) / len(known)}
    shown |= {f"p{percent}": percentile(known, percent) for percent in PERCENTILES}
    shown["max"] = known[-1]
    return {name: round(value, 3) for name, value in shown.items()}


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Linear between the two nearest ranks; `ordered` is sorted and not empty."""
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def render(document: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        f"{document['completed']} of {document['sent']} requests completed "
        f"in {document['duration_s']:.1f} s, {document['failed']} failed",
        f"{document['requests_per_s']:.2f} requests/s, "
        f"{document['output_tokens_per_s']:.0f} output tokens/s, "
        f"{document['prompt_tokens_per_s']:.0f} prompt tokens/s",
    ]
    rows = [
        (label, *(f"{document[name][column]:.1f}" for column in COLUMNS))
        for label, name in TIMES
        if document[name]
    ]
    table = console.table(("ms", *COLUMNS), rows, right=frozenset(range(1, 6)))
    lines += ["", table, "", *notes(document)]
    return "\n".join(lines).rstrip()


def notes(figures: dict[str, Any]) -> list[str]:
    """Goodput, a client that measured itself, errors."""
    lines = []
    if good := figures["goodput"]:
        goals = ", ".join(
            f"{name} {good[goal]:g} ms"
            for name, goal in (
                ("TTFT", "slo_ttft_ms"),
                ("TPOT", "slo_tpot_ms"),
                ("whole answer", "slo_e2e_ms"),
            )
            if good[goal] is not None
        )
        lines.append(
            f"goodput {good['requests_per_s']:.2f} requests/s: {good['share']:.1%} of requests met "
            + goals
        )
    lag = figures["client_lag_ms"]
    if lag and lag["p99"] > LAG_WARN_MS:
        lines.append(
            f"warning: this client sent late (p99 {lag['p99']:.0f} ms, "
            f"{figures['client_cpu_share']:.0%} of a core): it is part of what was measured"
        )
    for code, found in figures["errors"].items():
        lines.append(f"{found['count']} x {code}: {found['example']}")
    return lines


def requests(result: Result) -> list[dict[str, Any]]:
    """What became of each request; seconds since the start of the run."""

    def since_start(at_s: float | None) -> float | None:
        return None if at_s is None else round(at_s - result.start_s, 6)

    return [
        {
            "due_s": since_start(sample.due_s),
            "sent_s": since_start(sample.sent_s),
            "first_s": since_start(sample.first_s),
            "last_s": since_start(sample.last_s),
            "gap_max_s": round(max(sample.gaps_s, default=0.0), 6),
            "prompt_tokens": prompt_tokens(sample),
            "output_tokens": sample.tokens,
            "is_complete": sample.is_complete,
            "error": sample.error,
            "error_code": sample.error_code,
        }
        for sample in result.samples
    ]


@contextlib.contextmanager
def writing(path: object) -> Iterator[None]:
    """What goes wrong while a file is written, as a CommandError."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise console.CommandError(f"{path} cannot be written: {reason}") from error


def check_outputs(args: argparse.Namespace) -> None:
    """Refuse before the run what would lose its report after it. Raises CommandError."""
    files = [args.plot, None if args.json in (None, "-") else Path(args.json)]
    for path in filter(None, files):
        if path.is_dir() or not path.parent.is_dir():
            message = f"{path} cannot be written: {path.parent} is no folder"
            if path.is_dir():
                message = f"{path} is a folder"
            raise console.CommandError(message, code=console.USAGE)
    if args.plot and args.plot.suffix not in PLOT_SUFFIXES:
        message = f"{args.plot} is none of {', '.join(PLOT_SUFFIXES)}"
        raise console.CommandError(message, code=console.USAGE)
    if args.plot and find_spec("matplotlib") is None:
        raise console.CommandError("--plot needs matplotlib", fix="pip install 'dopd[bench]'")
