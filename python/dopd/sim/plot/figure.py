"""What is drawn: panels of bars and lines, with names and units. How is the renderers' business."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# Okabe and Ito's: told apart by people who see no red or no green.
COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#8C8C8C",
    "#B8A800",
)
GREY = "#D0D0D0"


@dataclass(frozen=True, slots=True)
class Bars:
    """Lying bars: one row per label; groups side by side, or stacked."""

    title: str
    xlabel: str
    labels: Sequence[str]
    groups: Mapping[str, Sequence[float]]
    is_stacked: bool = False
    # A line across all rows, such as the share that is asked for.
    mark: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines over a common axis: name to (x, y)."""

    title: str
    xlabel: str
    ylabel: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    mark: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """Panels two abreast under one title. The title says that all is simulated."""

    title: str
    panels: Sequence[Bars | Lines]
    note: str = ""
    # Colours by name, so that a policy has one colour in all panels.
    colours: Mapping[str, str] = field(default_factory=dict)

    def colour(self, name: str, place: int) -> str:
        """Of a group or series."""
        return self.colours.get(name, COLOURS[place % len(COLOURS)])


def ticks(top: float, count: int = 5) -> list[float]:
    """0 and about `count` round numbers up to at least `top`."""
    if not 0 < top < float("inf"):
        return [0.0, 1.0]
    rough = top / count
    power = 1.0
    while power > rough:
        power /= 10
    while power * 10 <= rough:
        power *= 10
    step = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= rough * 0.999)
    steps = int(top / step + 0.999)
    return [step * at for at in range(steps + 1)]


def shown(value: float) -> str:
    """A tick's number, short."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
