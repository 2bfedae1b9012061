"""A figure as PNG, by Matplotlib (`dopd[bench]`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure as Canvas

from dopd.sim.plot.figure import Bars, Figure, Lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 130
WIDTH_IN = 6.2
LINES_IN = 3.2
ROW_IN = 0.27


def write(figure: Figure, path: Path) -> None:
    """Draw and save."""
    columns = min(len(figure.panels), 2)
    rows = [figure.panels[at : at + 2] for at in range(0, len(figure.panels), 2)]
    heights = [max(_height(panel) for panel in row) for row in rows]
    canvas = Canvas(figsize=(WIDTH_IN * columns, sum(heights) + 0.7), layout="constrained")
    axes = canvas.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for row, places in zip(rows, axes, strict=True):
        for place in places[len(row) :]:
            place.set_axis_off()
        for panel, place in zip(row, places, strict=False):
            place.set_title(panel.title, loc="left", fontweight="bold", fontsize=11)
            place.spines[["top", "right"]].set_visible(False)
            if isinstance(panel, Bars):
                _bars(figure, panel, place)
            else:
                _lines(figure, panel, place)
    canvas.suptitle(f"{figure.title}\n{figure.note}".rstrip(), fontsize=12, x=0.01, ha="left")
    canvas.savefig(path, dpi=DPI)


def _height(panel: Bars | Lines) -> float:
    return LINES_IN if isinstance(panel, Lines) else max(1.2 + ROW_IN * len(panel.labels), 2)


def _bars(figure: Figure, panel: Bars, axes: Axes) -> None:
    places = list(range(len(panel.labels)))
    starts = [0.0] * len(places)
    thick = 0.72 / (1 if panel.is_stacked else max(len(panel.groups), 1))
    for number, (name, values) in enumerate(panel.groups.items()):
        offset = 0.0 if panel.is_stacked else thick * (number - (len(panel.groups) - 1) / 2)
        axes.barh(
            [place + offset for place in places],
            values,
            height=thick,
            left=starts if panel.is_stacked else 0.0,
            color=figure.colour(name, number),
            label=name,
        )
        if panel.is_stacked:
            starts = [start + value for start, value in zip(starts, values, strict=True)]
    axes.set_yticks(places, labels=panel.labels)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#E4E4E4")
    axes.set_axisbelow(True)
    axes.set(xlabel=panel.xlabel, xlim=(0, panel.limit))
    if panel.mark is not None:
        axes.axvline(panel.mark, color="#B00020", linestyle="--")
    if len(panel.groups) > 1:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _lines(figure: Figure, panel: Lines, axes: Axes) -> None:
    for number, (name, (xs, ys)) in enumerate(panel.series.items()):
        axes.plot(xs, ys, color=figure.colour(name, number), label=name)
    axes.grid(axis="y", color="#E4E4E4")
    axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel, ylim=(0, panel.limit), xlim=(0, None))
    if panel.mark is not None:
        axes.axhline(panel.mark, color="#B00020", linestyle="--")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
