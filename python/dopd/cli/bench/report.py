"""What a run showed: percentiles, goodput, a table, a picture."""

from __future__ import annotations

import argparse
import collections
import math
import platform
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dopd import __version__
from dopd.cli import console
from dopd.cli.bench.arrivals import Arrival
from dopd.cli.bench.load import Result, Sample

PERCENTILES = (50, 90, 99)
ERRORS_SHOWN = 5
# A client that lags more than this measures itself.
LAG_WARN_MS = 20.0


def ttft_ms(sample: Sample) -> float | None:
    """Milliseconds from the due moment to the first token."""
    return None if sample.first_s is None else 1e3 * (sample.first_s - sample.due_s)


def tpot_ms(sample: Sample) -> float | None:
    """Milliseconds per token after the first; None for an answer of one token."""
    if sample.first_s is None or sample.last_s is None or (sample.tokens or 0) < 2:
        return None
    return 1e3 * (sample.last_s - sample.first_s) / ((sample.tokens or 0) - 1)


def document(args: argparse.Namespace, plan: list[Arrival], result: Result) -> dict[str, Any]:
    """The report as one JSON document; times in milliseconds, rates per second."""
    done = [sample for sample in result.samples if sample.is_complete]
    errors = collections.Counter(sample.error for sample in result.samples if sample.error)
    span_s = max(1e-9, result.end_s - result.start_s)
    tokens = sum(sample.tokens or 0 for sample in done)
    lags = [1e3 * (sample.sent_s - sample.due_s) for sample in result.samples if sample.sent_s]
    return {
        "bench": "dopd bench",
        "conditions": conditions(args),
        "planned": len(plan),
        "sent": len(result.samples),
        "completed": len(done),
        "failed": sum(errors.values()),
        "errors": dict(errors.most_common(ERRORS_SHOWN)),
        "duration_s": round(span_s, 3),
        "requests_per_s": round(len(done) / span_s, 3),
        "prompt_tokens_per_s": round(sum(s.arrival.prompt_tokens for s in done) / span_s, 1),
        "output_tokens_per_s": round(tokens / span_s, 1),
        "ttft_ms": summary([ttft_ms(sample) for sample in done]),
        "tpot_ms": summary([tpot_ms(sample) for sample in done]),
        "gap_max_ms": summary([1e3 * sample.gap_max_s for sample in done]),
        "total_ms": summary([1e3 * ((s.last_s or 0.0) - s.due_s) for s in done]),
        "goodput": goodput(args, result, done, span_s),
        "client_lag_ms": summary(list(lags)),
        "client_cpu_share": round(result.cpu_s / span_s, 3),
    }


def conditions(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that one needs to run the same load again."""
    load: dict[str, Any] = {"trace": str(args.trace), "speed": args.speed}
    if not args.trace:
        load = {
            "rate": args.rate,
            "prompt_tokens": args.prompt_tokens,
            "output_tokens": args.output_tokens,
        }
    return load | {
        "requests": args.requests,
        "duration": args.duration,
        "model": args.model,
        "url": args.url,
        "seed": args.seed,
        "warmup": args.warmup,
        "concurrency_max": args.concurrency_max,
        "dopd": __version__,
        "client": f"{platform.machine()} python {platform.python_version()}",
    }


def goodput(
    args: argparse.Namespace, result: Result, done: list[Sample], span_s: float
) -> dict[str, Any] | None:
    """Requests per second that met every given target, and their share of all that were sent."""
    if args.slo_ttft_ms is None and args.slo_tpot_ms is None:
        return None
    ttft_max = args.slo_ttft_ms or math.inf
    tpot_max = args.slo_tpot_ms or math.inf
    good = [
        sample
        for sample in done
        if (ttft_ms(sample) or 0.0) <= ttft_max and (tpot_ms(sample) or 0.0) <= tpot_max
    ]
    return {
        "slo_ttft_ms": args.slo_ttft_ms,
        "slo_tpot_ms": args.slo_tpot_ms,
        "requests_per_s": round(len(good) / span_s, 3),
        "output_tokens_per_s": round(sum(sample.tokens or 0 for sample in good) / span_s, 1),
        "share": round(len(good) / len(result.samples), 4),
    }


def summary(values: Sequence[float | None]) -> dict[str, float] | None:
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
        (
            label,
            *(f"{document[name][column]:.1f}" for column in ("mean", "p50", "p90", "p99", "max")),
        )
        for label, name in (
            ("TTFT", "ttft_ms"),
            ("TPOT", "tpot_ms"),
            ("longest gap", "gap_max_ms"),
            ("whole answer", "total_ms"),
            ("client lag", "client_lag_ms"),
        )
        if document[name]
    ]
    header = ("ms", "mean", "p50", "p90", "p99", "max")
    lines += ["", console.table(header, rows, right=frozenset(range(1, 6))), ""]
    if good := document["goodput"]:
        lines.append(
            f"goodput {good['requests_per_s']:.2f} requests/s: {good['share']:.1%} of requests met "
            f"TTFT {good['slo_ttft_ms'] or '-'} ms, TPOT {good['slo_tpot_ms'] or '-'} ms"
        )
    lag = document["client_lag_ms"]
    if lag and lag["p99"] > LAG_WARN_MS:
        lines.append(
            f"warning: this client sent late (p99 {lag['p99']:.0f} ms, "
            f"{document['client_cpu_share']:.0%} of a core): it is part of what was measured"
        )
    lines += [f"{count} x {error}" for error, count in document["errors"].items()]
    return "\n".join(lines)


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
            "gap_max_s": round(sample.gap_max_s, 6),
            "prompt_tokens": sample.arrival.prompt_tokens,
            "output_tokens": sample.tokens,
            "is_complete": sample.is_complete,
            "error": sample.error,
        }
        for sample in result.samples
    ]


def check_outputs(args: argparse.Namespace) -> None:
    """Refuse before the run what would lose its report after it. Raises CommandError."""
    for path in filter(None, (args.json, args.png)):
        if path.is_dir() or not path.parent.is_dir():
            message = f"{path} cannot be written: {path.parent} is no folder"
            if path.is_dir():
                message = f"{path} is a folder"
            raise console.CommandError(message, code=console.USAGE)
    if args.png and find_spec("matplotlib") is None:
        raise console.CommandError("--png needs matplotlib", fix="pip install 'dopd[bench]'")


def draw(path: Path, args: argparse.Namespace, result: Result) -> None:
    """TTFT and TPOT over the time of arrival, and their distributions."""
    from matplotlib.figure import Figure

    done = [sample for sample in result.samples if sample.is_complete]
    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(2, 2)
    shown = (("TTFT", ttft_ms, args.slo_ttft_ms), ("TPOT", tpot_ms, args.slo_tpot_ms))
    for (name, measure, slo_ms), (over_time, spread) in zip(shown, panels, strict=True):
        points = [(s.due_s - result.start_s, y) for s in done if (y := measure(s)) is not None]
        if not points:
            continue
        times, values = zip(*points, strict=True)
        over_time.plot(times, values, ".", markersize=3)
        over_time.set(xlabel="time of arrival (s)", ylabel=f"{name} (ms)", ylim=(0, None))
        shares = [(rank + 1) / len(values) for rank in range(len(values))]
        spread.plot(sorted(values), shares)
        spread.set(xlabel=f"{name} (ms)", ylabel="share of requests", ylim=(0, 1), xlim=(0, None))
        if slo_ms is not None:
            over_time.axhline(slo_ms, color="tab:red", linestyle="--")
            spread.axvline(slo_ms, color="tab:red", linestyle="--")
    figure.suptitle(f"{args.model}: {len(done)} of {len(result.samples)} requests completed")
    figure.savefig(path, dpi=120)
