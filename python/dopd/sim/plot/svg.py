"""A figure as SVG, by itself: no library, no font file, the same bytes everywhere."""

from __future__ import annotations

from html import escape

from dopd.sim.plot.figure import Bars, Figure, Lines, shown, ticks

PANEL_WIDTH = 560
PANEL_GAP = 24
LINES_HEIGHT = 300
ROW_PITCH = 26
MARGIN = 20
TOP = 64
# Of a panel: left of the axis for lines, above it, below it.
LEFT, ABOVE, BELOW = 64, 34, 66
CHAR_WIDTH = 6.6
FONT = "font-family='Helvetica, Arial, sans-serif'"


def render(figure: Figure) -> str:
    """The whole document."""
    rows = [figure.panels[at : at + 2] for at in range(0, len(figure.panels), 2)]
    width = MARGIN * 2 + PANEL_WIDTH * 2 + PANEL_GAP
    if len(figure.panels) == 1:
        width = MARGIN * 2 + PANEL_WIDTH
    parts: list[str] = []
    y = float(TOP)
    for row in rows:
        height = max(_height(panel) for panel in row)
        for place, panel in enumerate(row):
            x = MARGIN + place * (PANEL_WIDTH + PANEL_GAP)
            draw = _bars if isinstance(panel, Bars) else _lines
            parts.append(f"<g transform='translate({x},{y:g})'>")
            parts += draw(figure, panel, height)  # type: ignore[arg-type]
            parts.append("</g>")
        y += height + PANEL_GAP
    head = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{y:g}' "
        f"viewBox='0 0 {width} {y:g}' {FONT} font-size='12' fill='#222'>",
        f"<rect width='{width}' height='{y:g}' fill='white'/>",
        _text(MARGIN, 28, figure.title, size=17, weight="bold"),
        _text(MARGIN, 48, figure.note, colour="#666"),
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def _height(panel: Bars | Lines) -> float:
    if isinstance(panel, Lines):
        return LINES_HEIGHT
    return max(ABOVE + BELOW + ROW_PITCH * len(panel.labels), LINES_HEIGHT / 2)


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 12,
    anchor: str = "start",
    weight: str = "normal",
    colour: str = "#222",
    turn: bool = False,
) -> str:
    if not text:
        return ""
    turned = f" transform='rotate(-90 {x:g} {y:g})'" if turn else ""
    return (
        f"<text x='{x:g}' y='{y:g}' font-size='{size}' text-anchor='{anchor}' "
        f"font-weight='{weight}' fill='{colour}'{turned}>{escape(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "") -> str:
    dashed = f" stroke-dasharray='{dash}'" if dash else ""
    return (
        f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' stroke='{colour}'{dashed}/>"
    )


def _legend(figure: Figure, names: list[str], x: float, y: float) -> list[str]:
    """Names beside their colours, in as many lines as they need, from `y` on."""
    parts: list[str] = []
    at, right = x, PANEL_WIDTH
    for place, name in enumerate(names):
        width = 22 + CHAR_WIDTH * len(name) + 12
        if at > x and at + width > right:
            at, y = x, y + 16
        colour = figure.colour(name, place)
        parts.append(f"<rect x='{at:g}' y='{y - 9:g}' width='14' height='9' fill='{colour}'/>")
        parts.append(_text(at + 19, y, name))
        at += width
    return parts


def _bars(figure: Figure, panel: Bars, height: float) -> list[str]:
    left = max([CHAR_WIDTH * len(label) for label in panel.labels], default=0) + 14
    right = PANEL_WIDTH - 46
    names = list(panel.groups)
    values = [list(panel.groups[name]) for name in names]
    rows = zip(*values, strict=True)
    tops = [sum(row) if panel.is_stacked else max(row) for row in rows]
    marks = ticks(panel.limit or max([*tops, panel.mark or 0, 1e-9]))
    bottom = ABOVE + ROW_PITCH * len(panel.labels)

    def at(value: float) -> float:
        return left + (right - left) * min(value / marks[-1], 1)

    parts = [_text(0, 16, panel.title, size=14, weight="bold")]
    for tick in marks:
        parts.append(_line(at(tick), ABOVE - 4, at(tick), bottom, "#E4E4E4"))
        parts.append(_text(at(tick), bottom + 16, shown(tick), anchor="middle", colour="#555"))
    thick = (ROW_PITCH - 7) / (1 if panel.is_stacked else max(len(names), 1))
    for row, label in enumerate(panel.labels):
        y = ABOVE + ROW_PITCH * row
        parts.append(_text(left - 8, y + ROW_PITCH / 2 + 1, label, anchor="end"))
        start = 0.0
        for place, name in enumerate(names):
            value = values[place][row]
            x, top = (at(start), y) if panel.is_stacked else (left, y + thick * place)
            end = at(start + value) if panel.is_stacked else at(value)
            colour = figure.colour(name, place)
            parts.append(
                f"<rect x='{x:.1f}' y='{top:.1f}' width='{max(end - x, 0):.1f}' "
                f"height='{thick:.1f}' fill='{colour}'><title>{escape(label)}, "
                f"{escape(name)}: {value:.4g}</title></rect>"
            )
            start += value
            if not panel.is_stacked and thick > 8:
                middle = top + thick / 2 + 4
                parts.append(_text(end + 5, middle, shown(value), size=11, colour="#444"))
    if panel.mark is not None:
        parts.append(_line(at(panel.mark), ABOVE - 6, at(panel.mark), bottom, "#B00020", "5 4"))
    parts.append(_line(left, ABOVE - 4, left, bottom, "#666"))
    parts.append(_text((left + right) / 2, bottom + 34, panel.xlabel, anchor="middle"))
    legend = _legend(figure, names, left, bottom + 54) if len(names) > 1 else []
    return parts + legend


def _lines(figure: Figure, panel: Lines, height: float) -> list[str]:
    names = list(panel.series)
    all_x = [x for xs, _ in panel.series.values() for x in xs]
    all_y = [y for _, ys in panel.series.values() for y in ys]
    x_marks = ticks(max(all_x, default=1.0))
    y_marks = ticks(panel.limit or max([*all_y, panel.mark or 0, 1e-9]))
    x_top = max(all_x, default=1.0) or 1.0
    # Names take two lines at most; more would be a table.
    bottom = height - BELOW - 16
    right = PANEL_WIDTH - 16

    def x_at(x: float) -> float:
        return LEFT + (right - LEFT) * min(x / x_top, 1)

    def y_at(y: float) -> float:
        return bottom - (bottom - ABOVE) * min(max(y / y_marks[-1], 0), 1)

    parts = [_text(0, 16, panel.title, size=14, weight="bold")]
    for tick in y_marks:
        parts.append(_line(LEFT, y_at(tick), right, y_at(tick), "#E4E4E4"))
        parts.append(_text(LEFT - 8, y_at(tick) + 4, shown(tick), anchor="end", colour="#555"))
    for tick in (tick for tick in x_marks if tick <= x_top):
        parts.append(_line(x_at(tick), bottom, x_at(tick), bottom + 4, "#666"))
        parts.append(_text(x_at(tick), bottom + 18, shown(tick), anchor="middle", colour="#555"))
    if panel.mark is not None:
        parts.append(_line(LEFT, y_at(panel.mark), right, y_at(panel.mark), "#B00020", "5 4"))
    for place, name in enumerate(names):
        xs, ys = panel.series[name]
        points = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in zip(xs, ys, strict=True))
        colour = figure.colour(name, place)
        parts.append(
            f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='1.8' "
            f"stroke-linejoin='round'><title>{escape(name)}</title></polyline>"
        )
    parts.append(_line(LEFT, ABOVE, LEFT, bottom, "#666"))
    parts.append(_line(LEFT, bottom, right, bottom, "#666"))
    parts.append(_text((LEFT + right) / 2, bottom + 36, panel.xlabel, anchor="middle"))
    parts.append(_text(14, (ABOVE + bottom) / 2, panel.ylabel, anchor="middle", turn=True))
    return parts + _legend(figure, names, LEFT, bottom + 56)
