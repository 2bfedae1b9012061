"""Pictures of runs: SVG by `svg`, which needs nothing, PNG by `png`, which needs Matplotlib.

Why an SVG writer of our own: Matplotlib with NumPy is 30 MB and a second of import for a command
that answers in seconds; what is drawn here is bars and lines. Both draw the same `Figure`.
"""

from __future__ import annotations

from pathlib import Path

from dopd.errors import DopdError
from dopd.sim.plot.figure import Bars, Figure, Lines

__all__ = ["SUFFIXES", "Bars", "Figure", "Lines", "save"]

SUFFIXES = (".svg", ".png")


def save(figure: Figure, path: str | Path) -> None:
    """Write `figure` to `path`, by its suffix. Raises DopdError."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise DopdError(f"plot {path} ends in {path.suffix!r}, must end in {' or '.join(SUFFIXES)}")
    try:
        if path.suffix == ".svg":
            from dopd.sim.plot import svg

            path.write_text(svg.render(figure), encoding="utf-8")
        else:
            from dopd.sim.plot import png

            png.write(figure, path)
    except ModuleNotFoundError as error:
        raise DopdError(
            f"plot {path}: PNG needs Matplotlib; pip install 'dopd[bench]', or name it .svg"
        ) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DopdError(f"plot {path} cannot be written: {reason}") from error
