"""When requests are due and how long they are: a Poisson process, or a trace from a file."""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import itertools
import json
import random
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dopd.cli.console import USAGE, CommandError

REQUESTS_MAX = 10_000_000
CSV_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: due `at_s` seconds after the start."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


def plan(args: argparse.Namespace) -> list[Arrival]:
    """Every request of the run, in the order of its time."""
    stream = from_trace(args.trace, args.speed) if args.trace else poisson(args)
    if args.duration is not None:
        stream = itertools.takewhile(lambda arrival: arrival.at_s < args.duration, stream)
    arrivals = list(itertools.islice(stream, args.requests or REQUESTS_MAX))
    if not arrivals:
        raise CommandError("the load has no request", fix="raise --duration", code=USAGE)
    return arrivals


def poisson(args: argparse.Namespace) -> Iterator[Arrival]:
    """Independent arrivals at `args.rate` per second, all of one length, without end."""
    source = random.Random(args.seed)
    at_s = 0.0
    while True:
        at_s += source.expovariate(args.rate)
        yield Arrival(at_s, args.prompt_tokens, args.output_tokens)


def from_trace(path: Path, speed: float) -> Iterator[Arrival]:
    """The rows of a trace file; times start at zero and are divided by `speed`."""
    is_jsonl = path.name.removesuffix(".gz").endswith(".jsonl")
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
        rows = spread(jsonl_rows(text)) if is_jsonl else csv_rows(text)
        arrivals = sorted(rows, key=lambda row: row.at_s)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        form = "timestamp, input_length, output_length" if is_jsonl else ", ".join(CSV_COLUMNS)
        message = f"trace {path} cannot be read: {type(error).__name__}: {error}"
        raise CommandError(message, fix=f"columns are {form}", code=USAGE) from error
    first_s = arrivals[0].at_s if arrivals else 0.0
    for row in arrivals:
        at_s = (row.at_s - first_s) / speed
        yield Arrival(at_s, max(1, row.prompt_tokens), max(1, row.output_tokens))


def csv_rows(text: str) -> Iterator[Arrival]:
    """Rows of a csv with a header."""
    for row in csv.DictReader(io.StringIO(text)):
        at, prompt, output = (row[column] for column in CSV_COLUMNS)
        yield Arrival(float(at), int(float(prompt)), int(float(output)))


def jsonl_rows(text: str) -> Iterator[Arrival]:
    """Rows of Mooncake's form: one JSON object a line, time in milliseconds."""
    for line in filter(None, text.splitlines()):
        row = json.loads(line)
        yield Arrival(row["timestamp"] / 1e3, row["input_length"], row["output_length"])


def spread(rows: Iterable[Arrival]) -> Iterator[Arrival]:
    """Rows that share one time stamp, spread evenly until the next stamp.

    Mooncake rounds its times to about 3 s; sent as they are, they would be bursts that never were.
    """
    groups = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row.at_s)]
    gap_s = 0.0
    for index, group in enumerate(groups):
        if index + 1 < len(groups):
            gap_s = groups[index + 1][0].at_s - group[0].at_s
        for place, row in enumerate(group):
            at_s = row.at_s + gap_s * place / len(group)
            yield Arrival(at_s, row.prompt_tokens, row.output_tokens)
