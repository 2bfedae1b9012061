"""When requests are due and how long they are: a random process, a trace, a file of prompts."""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import itertools
import json
import math
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
    # The prompt itself, if it is one of a dataset; prompt_tokens is then 0: nobody counted.
    text: str | None = None


def plan(args: argparse.Namespace) -> list[Arrival]:
    """Every request of the run, in the order of its time."""
    stream: Iterator[Arrival]
    if args.trace:
        stream = from_trace(args.trace, args.speed)
    elif args.dataset:
        stream = from_dataset(args)
    else:
        stream = random_lengths(args)
    if args.duration is not None:
        stream = itertools.takewhile(lambda arrival: arrival.at_s < args.duration, stream)
    arrivals = list(itertools.islice(stream, args.requests or REQUESTS_MAX))
    if not arrivals:
        raise CommandError("the load has no request", fix="raise --duration", code=USAGE)
    return arrivals


def times(args: argparse.Namespace, source: random.Random) -> Iterator[float]:
    """Arrivals at `args.rate` per second, without end.

    Gaps are gamma distributed, as vLLM's: shape `args.burstiness`, mean 1 / rate.
    """
    at_s = 0.0
    while True:
        if args.rate != math.inf:
            at_s += source.gammavariate(args.burstiness, 1 / (args.rate * args.burstiness))
        yield at_s


def random_lengths(args: argparse.Namespace) -> Iterator[Arrival]:
    """Requests of the asked lengths, or evenly around them, without end."""
    source = random.Random(args.seed)
    lengths = random.Random(args.seed + 1)

    def around(length: int) -> int:
        if not args.range_ratio:
            return length
        low, high = length * (1 - args.range_ratio), length * (1 + args.range_ratio)
        return max(1, lengths.randint(math.floor(low), math.ceil(high)))

    for at_s in times(args, source):
        yield Arrival(at_s, around(args.prompt_tokens), around(args.output_tokens))


def from_dataset(args: argparse.Namespace) -> Iterator[Arrival]:
    """The prompts of a file, once, at the asked rate."""
    try:
        rows = list(dataset_rows(args.dataset.read_text(), args.output_tokens))
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"dataset {args.dataset} cannot be read: {type(error).__name__}: {error}"
        fix = 'one JSON object a line with "prompt", or ShareGPT\'s list of conversations'
        raise CommandError(message, fix=fix, code=USAGE) from error
    arrivals = times(args, random.Random(args.seed))
    for (prompt, output_tokens), at_s in zip(rows, arrivals, strict=False):
        yield Arrival(at_s, 0, output_tokens, prompt)


def dataset_rows(text: str, output_tokens: int) -> Iterator[tuple[str, int]]:
    """Prompt and answer's length of jsonl, or the first turn of each of ShareGPT's talks."""
    if text.lstrip().startswith("["):
        for talk in json.loads(text):
            turns = talk.get("conversations") or talk.get("conversation") or []
            if turns and turns[0]["value"]:
                yield str(turns[0]["value"]), output_tokens
        return
    for line in filter(str.strip, text.splitlines()):
        row = json.loads(line)
        yield str(row["prompt"]), max(1, int(row.get("output_tokens") or output_tokens))


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
