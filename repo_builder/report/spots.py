"""A chart of single points with the interval of each: what a choice gains against what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from repo_builder.report.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, frame, wrap

_LETTER, _LINE = 6.4, 14.0  # room of a label's letter and line
_MARGIN = 0.06


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One point.

    Attributes:
        label: What it is.
        x: Where it stands.
        y: Likewise.
        low: Lower end of the interval of y; None for none.
        high: Upper end.
        colour: Number of its colour.
        ring: Whether it is the one that was taken.
    """

    label: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    colour: int = 0
    ring: bool = False


def spot_chart(
    title: str,
    description: str,
    spots: Sequence[Spot],
    names: tuple[str, str],
    *,
    legend: Sequence[tuple[int, str]],
    level: float | None = None,
    path: Sequence[Spot] = (),
) -> Markup:
    """Return the chart with its legend below; labels that would hide others are left to the table.

    Args:
        title: For who cannot see it.
        description: The same, longer.
        spots: The points, those whose labels matter most first; at least one.
        names: Titles of the axes.
        legend: (colour, what it means).
        level: A value of y that a line marks; None for none.
        path: Points that a line joins, in its order.
    """
    x = _axis(names[0], [item.x for item in spots])
    ends = [value for item in spots for value in (item.y, item.low, item.high, level) if value is not None]
    y = _axis(names[1], ends)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(item: Spot) -> tuple[float, float]:
        return x.place(item.x, LEFT, right), y.place(item.y, bottom, TOP)

    parts = [frame(x, y)]
    if level is not None:
        at = y.place(level, bottom, TOP)
        parts.append(
            f'<line class="line c7" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" stroke-dasharray="2 3"/>'
        )
    if len(path) > 1:
        joined = " ".join("{:.1f},{:.1f}".format(*place(item)) for item in path)
        parts.append(f'<polyline class="line c0" points="{joined}" stroke-dasharray="7 4"/>')
    parts += [_drawn(item, *place(item), y) for item in reversed(spots)]
    parts += _labels([(item.label, *place(item)) for item in spots])
    keys = "".join(
        f'<li><svg class="key" viewBox="0 0 14 14" aria-hidden="true"><circle class="dot f{colour}" cx="7" cy="7" '
        f'r="5"/></svg>{escape(said)}</li>'
        for colour, said in legend
    )
    return wrap(title, description, "".join(parts), HEIGHT) + Markup(f'<ul class="legend">{keys}</ul>')  # noqa: S704


def _axis(title: str, values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    room = (high - low) * _MARGIN or abs(high) * _MARGIN or 1.0
    return Axis(title=title, low=low - room, high=high + room)


def _drawn(item: Spot, px: float, py: float, y: Axis) -> str:
    bottom = HEIGHT - BOTTOM
    bar = ""
    if item.low is not None and item.high is not None:
        ends = y.place(item.low, bottom, TOP), y.place(item.high, bottom, TOP)
        bar = f'<line class="line c{item.colour}" x1="{px:.1f}" x2="{px:.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}"/>'
    ring = f'<circle class="line c{item.colour}" cx="{px:.1f}" cy="{py:.1f}" r="9"/>' if item.ring else ""
    said = f"<title>{escape(item.label)}</title>"
    return f'{bar}{ring}<circle class="dot f{item.colour}" cx="{px:.1f}" cy="{py:.1f}" r="5">{said}</circle>'


def _labels(spots: Sequence[tuple[str, float, float]]) -> list[str]:
    """Return the labels that there is room for: right of the point, else left of it, else none."""
    taken = [(px - 6, py - 6, px + 6, py + 6) for _, px, py in spots]
    found = []
    for text, px, py in spots:
        short = text if len(text) <= 34 else f"{text[:31]} …"
        width = len(short) * _LETTER
        for anchor, start in (("start", px + 9), ("end", px - 9 - width)):
            box = start, py - _LINE / 2, start + width, py + _LINE / 2
            if box[0] >= LEFT and box[2] <= WIDTH - 2 and not any(_meet(box, other) for other in taken):
                taken.append(box)
                at = px + 9 if anchor == "start" else px - 9
                found.append(
                    f'<text class="note" x="{at:.1f}" y="{py + 4:.1f}" text-anchor="{anchor}">{escape(short)}</text>'
                )
                break
    return found


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
