"""Small charts as inline SVG: no script, no network, colours from the page's own variables.

Every chart has ``role="img"``, a title and a description for who cannot see it; the page puts its figures in a table
beside it. Series differ in colour, dash and marker, so that they are told apart in print too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 520, 300  # drawn at 0.85 of that on a page of 500 px, at 1.2 on a wide one
LEFT, RIGHT, TOP, BOTTOM = 74, 16, 20, 48
_MOST_TICKS = 10
_NOTE, _ROW = 28, 12  # room of a word beside a point
_LETTER = 6.8  # width of a letter, at most
COLOURS = 8
_DASHES = ("", "7 4", "2 3", "9 3 2 3")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One series of a line chart.

    Attributes:
        name: Its name in the legend.
        points: (x, y), ascending in x.
        colour: Number of its colour.
        dash: Number of its dash.
        labels: A word beside each point; empty for none.
        joined: Whether a line goes through the points.
        marked: Whether the points are marked, where the chart marks any.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    dash: int = 0
    labels: Sequence[str] = ()
    joined: bool = True
    marked: bool = True


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis: its title, its range, and whether it is logarithmic."""

    title: str
    low: float
    high: float
    log: bool = False
    form: Callable[[float], str] = "{:g}".format

    def place(self, value: float, start: float, end: float) -> float:
        """Return where a value stands between two coordinates."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(max(value, 1e-12)), math.log10(low), math.log10(high)
        share = (value - low) / (high - low) if high > low else 0.5
        return start + share * (end - start)

    def ticks(self) -> list[float]:
        """Return round values within the range, four to nine of them."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
            shown = [item for item in found if self.low * 0.999 <= item <= self.high * 1.001]
            return shown if len(shown) <= _MOST_TICKS else [item for item in shown if f"{item:e}".startswith("1")]
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step)
        return [place * step for place in range(first, math.floor(self.high / step + 1e-9) + 1)]


def line_chart(title: str, description: str, lines: Sequence[Line], x: Axis, y: Axis, *, markers: bool) -> Markup:
    """Return a line chart with its legend below."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts, noted = [frame(x, y)], list[tuple[float, float]]()
    for line in lines:
        spots = [(x.place(px, LEFT, right), y.place(py, bottom, TOP)) for px, py in line.points]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in spots)
        dash = _DASHES[line.dash % len(_DASHES)]
        style = f' stroke-dasharray="{dash}"' if dash else ""
        if line.joined:
            parts.append(f'<polyline class="line c{line.colour % COLOURS}" points="{path}"{style}/>')
        if markers and line.marked:
            parts += [_marker(px, py, line) for px, py in spots]
        for (px, py), label in zip(spots, line.labels, strict=False):
            while any(abs(px - nx) < _NOTE and abs(py - ny) < _ROW for nx, ny in noted):
                py -= _ROW
            noted.append((px, py))
            parts.append(
                f'<text class="note" x="{px:.1f}" y="{py - 9:.1f}" text-anchor="middle">{escape(label)}</text>'
            )
    legend = "".join(_legend(line) for line in lines)
    return wrap(title, description, "".join(parts), HEIGHT) + Markup(f'<ul class="legend">{legend}</ul>')  # noqa: S704


def bar_chart(
    title: str,
    description: str,
    rows: Sequence[tuple[str, Sequence[float]]],
    names: Sequence[str],
    form: Callable[[float], str],
) -> Markup:
    """Return stacked horizontal bars, one a row, with the total behind each.

    Args:
        title: For who cannot see it.
        description: The same, longer.
        rows: Label and the parts' sizes.
        names: Names of the parts.
        form: How a total is written.
    """
    left, above = _room([label for label, _ in rows])
    each = 34 + above
    height = each * len(rows) + 16
    most = max((sum(parts) for _, parts in rows), default=1.0) or 1.0
    scale = (WIDTH - left - 90) / most
    drawn = []
    for place, (label, parts) in enumerate(rows):
        top, at = 8 + place * each + above, float(left)
        drawn.append(_label(label, left, top + 16, above))
        for number, size in enumerate(parts):
            width = size * scale
            if width > 0.2:
                drawn.append(
                    f'<rect class="bar f{number % COLOURS}" x="{at:.1f}" y="{top}" width="{width:.1f}" height="22">'
                    f"<title>{escape(names[number])}: {escape(form(size))}</title></rect>"
                )
            at += width
        drawn.append(f'<text x="{at + 6:.1f}" y="{top + 16}">{escape(form(sum(parts)))}</text>')
    legend = "".join(
        f'<li><svg class="key" viewBox="0 0 14 14" aria-hidden="true"><rect class="bar f{number % COLOURS}" width="14" '
        f'height="14"/></svg>{escape(name)}</li>'
        for number, name in enumerate(names)
    )
    return wrap(title, description, "".join(drawn), height) + Markup(f'<ul class="legend">{legend}</ul>')  # noqa: S704


def interval_chart(
    title: str, description: str, rows: Sequence[tuple[str, float, float, float, bool]], axis: Axis
) -> Markup:
    """Return one value with its interval a row: (label, low, value, high, whether it is marked)."""
    left, above = _room([row[0] for row in rows])
    each = 30 + above
    bottom = each * len(rows) + 10
    parts = []
    for tick in axis.ticks():
        at = axis.place(tick, left, WIDTH - RIGHT - 20)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="4" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{axis.form(tick)}</text>')
    for place, (label, low, value, high, marked) in enumerate(rows):
        middle = 20 + place * each + above
        start, at, end = (axis.place(item, left, WIDTH - RIGHT - 20) for item in (low, value, high))
        colour = 1 if marked else 0
        parts.append(_label(label, left, middle + 4, above))
        parts.append(
            f'<line class="line c{colour}" x1="{start:.1f}" x2="{end:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
        )
        parts.append(f'<circle class="dot f{colour}" cx="{at:.1f}" cy="{middle:.1f}" r="5"/>')
    return wrap(title, description, "".join(parts), bottom + 24)


def _room(labels: Sequence[str]) -> tuple[int, int]:
    """Return the room for labels left of their rows, or above them where they are long."""
    needed = 24 + round(_LETTER * max(map(len, labels), default=0))
    return (needed, 0) if needed < WIDTH * 0.36 else (12, 18)


def _label(text: str, left: float, y: float, above: float) -> str:
    """Return a row's label beside it or above it; one that is wider than the chart is drawn narrower."""
    if not above:
        return f'<text x="{left - 8}" y="{y:.1f}" text-anchor="end">{escape(text)}</text>'
    most = WIDTH - left - RIGHT
    fit = f' textLength="{most}" lengthAdjust="spacingAndGlyphs"' if len(text) * _LETTER > most else ""
    return f'<text x="{left}" y="{y - above - 2:.1f}"{fit}>{escape(text)}</text>'


def wrap(title: str, description: str, body: str, height: int) -> Markup:
    """Return a chart of parts that are drawn, with its title and description for who cannot see it."""
    return Markup(  # noqa: S704 - every text in it is escaped
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {height}"><title>{escape(title)}</title>'
        f"<desc>{escape(description)}</desc>{body}</svg>"
    )


def frame(x: Axis, y: Axis) -> str:
    """Return the grid, the ticks and the titles of two axes."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in x.ticks():
        at = x.place(tick, LEFT, right)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{x.form(tick)}</text>')
    for tick in y.ticks():
        at = y.place(tick, bottom, TOP)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{y.form(tick)}</text>')
    middle = (TOP + bottom) / 2
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.title)}</text>')
    parts.append(
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{escape(y.title)}</text>'
    )
    return "".join(parts)


def _marker(px: float, py: float, line: Line) -> str:
    colour = f"f{line.colour % COLOURS}"
    if line.dash % 2:
        return f'<rect class="dot {colour}" x="{px - 4:.1f}" y="{py - 4:.1f}" width="8" height="8"/>'
    return f'<circle class="dot {colour}" cx="{px:.1f}" cy="{py:.1f}" r="4.5"/>'


def _legend(line: Line) -> str:
    dash = _DASHES[line.dash % len(_DASHES)]
    style = f' stroke-dasharray="{dash}"' if dash else ""
    stroke = f'<line class="line c{line.colour % COLOURS}" x1="0" x2="28" y1="7" y2="7"{style}/>'
    if not line.joined:
        stroke = _marker(14, 7, line)
    key = f'<svg class="key wide" viewBox="0 0 28 14" aria-hidden="true">{stroke}</svg>'
    return f"<li>{key}{escape(line.name)}</li>"


def _round_step(rough: float) -> float:
    if rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
