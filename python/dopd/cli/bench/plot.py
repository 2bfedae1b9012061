"""The picture of a run, or of two side by side."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dopd.cli.bench.load import Result
from dopd.cli.bench.report import tpot_ms, ttft_ms, writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Told apart by people who see no red or no green.
COLOURS = ("tab:blue", "tab:orange")


def draw(args: argparse.Namespace, results: dict[str, Result]) -> None:
    """TTFT and TPOT over the time of arrival, and their distributions, in `args.plot`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(2, 2)
    shown = (("TTFT", ttft_ms, args.slo_ttft_ms), ("TPOT", tpot_ms, args.slo_tpot_ms))
    for (name, measure, slo_ms), (over_time, spread) in zip(shown, panels, strict=True):
        for colour, (label, result) in zip(COLOURS, results.items(), strict=False):
            done = [sample for sample in result.samples if sample.is_complete]
            points = [(s.arrival.at_s, y) for s in done if (y := measure(s)) is not None]
            _draw_one(over_time, spread, points, label, colour)
        over_time.set(xlabel="time of arrival (s)", ylabel=f"{name} (ms)", ylim=(0, None))
        spread.set(xlabel=f"{name} (ms)", ylabel="share of requests", ylim=(0, 1), xlim=(0, None))
        if slo_ms is not None:
            over_time.axhline(slo_ms, color="tab:red", linestyle="--")
            spread.axvline(slo_ms, color="tab:red", linestyle="--")
    if len(results) > 1:
        panels[0][1].legend(loc="lower right")
    figure.suptitle(", ".join(_title(label, result) for label, result in results.items()))
    with writing(args.plot):
        figure.savefig(args.plot, dpi=120)


def _draw_one(
    over_time: Axes, spread: Axes, points: list[tuple[float, float]], label: str, colour: str
) -> None:
    if not points:
        return
    times, values = zip(*points, strict=True)
    over_time.plot(times, values, ".", markersize=3, color=colour, label=label)
    shares = [(rank + 1) / len(values) for rank in range(len(values))]
    spread.plot(sorted(values), shares, color=colour, label=label)


def _title(label: str, result: Result) -> str:
    done = sum(sample.is_complete for sample in result.samples)
    return f"{label}: {done} of {len(result.samples)} completed"
