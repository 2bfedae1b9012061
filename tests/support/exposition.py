"""Prometheus' text format, read strictly: what a scraper may refuse fails here."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')
KINDS = ("counter", "gauge", "histogram", "untyped")
SUFFIXES = ("_bucket", "_sum", "_count")

Labels = tuple[tuple[str, str], ...]


@dataclass
class Family:
    """One metric: its samples by full name and labels."""

    name: str
    kind: str
    help: str
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)


def parse(page: str) -> dict[str, Family]:
    """Families by name. Raises AssertionError for anything that is not well formed."""
    assert page.endswith("\n"), "the last line has no end"
    families: dict[str, Family] = {}
    current: Family | None = None
    described = ("", "")
    for line in page.splitlines():
        if line.startswith("# HELP "):
            name, text = line[7:].split(" ", 1)
            described = (name, text)
        elif line.startswith("# TYPE "):
            name, kind = line[7:].split(" ")
            assert NAME.fullmatch(name) and kind in KINDS, line
            assert described[0] == name, f"{name} has no help"
            assert name not in families, f"{name} is declared twice"
            current = families[name] = Family(name, kind, described[1])
        else:
            assert current is not None and not line.startswith("#"), line
            _sample(current, line)
    for family in families.values():
        _check(family)
    return families


def _sample(family: Family, line: str) -> None:
    match = SAMPLE.fullmatch(line)
    assert match, f"no sample: {line!r}"
    name, inside, value = match.groups()
    allowed = (
        [family.name + suffix for suffix in SUFFIXES]
        if family.kind == "histogram"
        else [family.name]
    )
    assert name in allowed, f"{name} stands below {family.name}"
    labels: list[tuple[str, str]] = []
    end = 0
    for label in LABEL.finditer(inside or ""):
        assert label.start() == end, line
        labels.append((label[1], label[2]))
        end = label.end()
    assert end == len(inside or ""), f"labels of {line!r}"
    assert len(dict(labels)) == len(labels), f"a label twice: {line!r}"
    key = (name, tuple(sorted(labels)))
    assert key not in family.samples, f"a sample twice: {line!r}"
    family.samples[key] = float(value.replace("+Inf", "inf"))


def _check(family: Family) -> None:
    if family.kind == "counter":
        assert family.name.endswith("_total") or family.name.startswith("vllm:"), family.name
        assert all(value >= 0 for value in family.samples.values()), family.name
    if family.kind != "histogram":
        return
    series: dict[Labels, list[tuple[float, float]]] = {}
    for (name, labels), value in family.samples.items():
        if name.endswith("_bucket"):
            rest = tuple(label for label in labels if label[0] != "le")
            bound = float(dict(labels)["le"].replace("+Inf", "inf"))
            series.setdefault(rest, []).append((bound, value))
    for rest, buckets in series.items():
        bounds, counts = zip(*buckets, strict=True)
        assert list(bounds) == sorted(bounds) and bounds[-1] == math.inf, family.name
        assert list(counts) == sorted(counts), f"{family.name} falls"
        assert counts[-1] == family.samples[(family.name + "_count", rest)], family.name
        assert (family.name + "_sum", rest) in family.samples, family.name
