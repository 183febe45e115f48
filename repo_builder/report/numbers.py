"""How figures are written, alike on a terminal and on a page."""

from __future__ import annotations


def time_us(value: float | None) -> str:
    """Return microseconds as ``1.23 ms``, ``870 µs`` or ``2.1 s``; a dash for None."""
    if value is None:
        return "–"
    if value < 1000:
        return f"{value:.0f} µs"
    if value < 1_000_000:
        return f"{_three(value / 1000)} ms"
    return f"{_three(value / 1_000_000)} s"


def tick_us(value: float) -> str:
    """Return microseconds of an axis, round as they are: ``0``, ``500 µs``, ``2.5 ms``, ``1 s``."""
    for size, unit in ((1_000_000, "s"), (1000, "ms"), (1, "µs")):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} µs" if value else "0"


def rate(value: float) -> str:
    """Return a rate with thousands separated, at least three digits shown."""
    return f"{value:,.0f}" if value >= 100 else _three(value)


def percent(value: float | None, digits: int = 2) -> str:
    """Return a fraction as per cent; a dash for None."""
    return "–" if value is None else f"{value * 100:.{digits}f} %"


def points(value: float) -> str:
    """Return a difference of fractions as signed percentage points."""
    return f"{value * 100:+.2f} points"


def small(value: float | None) -> str:
    """Return a difference of outputs with three significant digits; a dash for None."""
    return "–" if value is None else f"{value:.3g}"


def interval(low: float | None, high: float | None) -> str:
    """Return an interval of fractions as per cent."""
    return "–" if low is None or high is None else f"{low * 100:.2f} – {high * 100:.2f} %"


def energy(value: float | None) -> str:
    """Return joules as ``1.2 mJ``; a dash for None."""
    return "–" if value is None else f"{_three(value * 1000)} mJ"


def bytes_(value: float | None) -> str:
    """Return bytes as ``1.2 GB``; a dash for None."""
    if value is None:
        return "–"
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{_three(value)} {unit}"
        value /= 1000
    return f"{_three(value)} GB"


def one_line(text: str) -> str:
    """Return what a user named something as it is, but on one line: control characters as Python writes them."""
    return "".join(item if item.isprintable() else item.encode("unicode_escape").decode() for item in text)


def _three(value: float) -> str:
    """Three significant digits, no exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
