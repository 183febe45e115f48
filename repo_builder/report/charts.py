"""The charts of a run: what is drawn, out of what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from repo_builder.report import numbers
from repo_builder.report.svg import Axis, Line, bar_chart, interval_chart, line_chart
from repo_builder.results import Ladder, Level, LevelResult

TIME_PARTS = ("queue", "compute input", "compute infer", "compute output", "cache", "network + client")
_MOST_LINES = 16
_CDF_POINTS = 200


def curve(levels: Sequence[LevelResult]) -> Markup | None:
    """Return latency over throughput: one colour a batch size, p50 solid and p99 dashed; None for a single level."""
    groups: dict[str, list[LevelResult]] = {}
    for item in levels:
        if item.latency:
            groups.setdefault(_family(item.level), []).append(item)
    points = [item for group in groups.values() for item in group]
    if len(points) < 2:
        return None
    lines = []
    for colour, (name, group) in enumerate(groups.items()):
        group.sort(key=lambda item: by_load(item.level))
        for dash, which in enumerate(("p50", "p99")):
            spots = [(item.infer_per_s, getattr(item.latency, f"{which}_us")) for item in group]
            labels = [_load(item.level) for item in group] if dash else []
            lines.append(Line(name=f"{which}, {name}", points=spots, colour=colour, dash=dash, labels=labels))
    most = max(item.latency.p99_us for item in points if item.latency)
    x = Axis(
        title="inferences a second",
        low=0,
        high=max(item.infer_per_s for item in points) * 1.08,
        form=lambda value: f"{value:,.0f}",
    )
    y = Axis(title="latency of a request", low=0, high=most * 1.15, form=numbers.tick_us)
    described = "; ".join(
        f"{item.level}: {numbers.rate(item.infer_per_s)} inferences/s, p99 {numbers.time_us(item.latency.p99_us)}"
        for item in points
        if item.latency
    )
    return line_chart("Latency over throughput", described, lines, x, y, markers=True)


def cdf(levels: Sequence[LevelResult]) -> Markup | None:
    """Return the distribution of the latencies of every level, on a logarithmic axis; None where there are none."""
    lines, low, high = [], float("inf"), 0.0
    shown = [item for item in levels if item.latency and len(item.latency_sample_us) > 1][:_MOST_LINES]
    for place, item in enumerate(shown):
        ordered = sorted(item.latency_sample_us)
        count = len(ordered)
        picks = sorted({round(step * (count - 1) / _CDF_POINTS) for step in range(_CDF_POINTS + 1)})
        spots = [(ordered[pick], (pick + 1) / count * 100) for pick in picks]
        low, high = min(low, spots[0][0]), max(high, spots[-1][0])
        lines.append(Line(name=str(item.level), points=spots, colour=place, dash=place // 8))
    if not lines:
        return None
    x = Axis(title="latency (logarithmic)", low=max(low, 1.0) * 0.9, high=high * 1.1, log=True, form=numbers.tick_us)
    y = Axis(title="requests answered within it", low=0, high=100, form=lambda value: f"{value:g} %")
    described = "; ".join(
        f"{item.level}: half within {numbers.time_us(item.latency.p50_us)}, "
        f"99 % within {numbers.time_us(item.latency.p99_us)}"
        for item in shown
        if item.latency
    )
    return line_chart("Distribution of latencies", described, lines, x, y, markers=False)


def times(levels: Sequence[LevelResult]) -> Markup | None:
    """Return stacked bars of where the mean latency goes; None without the server's statistics."""
    rows = [(str(item.level), time_parts(item)) for item in levels if item.server and item.latency]
    if not rows:
        return None
    described = "; ".join(
        f"{label}: " + ", ".join(f"{name} {numbers.time_us(us)}" for name, us in zip(TIME_PARTS, parts, strict=True))
        for label, parts in rows
    )
    return bar_chart("Where the time goes", described, rows, TIME_PARTS, numbers.time_us)


def time_parts(item: LevelResult) -> list[float]:
    """Return a level's mean times in the order of ``TIME_PARTS``, microseconds."""
    server = item.server[0]
    return [
        server.queue_us,
        server.compute_input_us,
        server.compute_infer_us,
        server.compute_output_us,
        server.cache_us,
        item.network_and_client_us or 0.0,
    ]


def rungs(ladder: Ladder) -> Markup | None:
    """Return top-1 with its interval for every rung; None where outputs are not classes."""
    rows = [
        (item.form, item.low, item.top1, item.high, item.departs)
        for item in ladder.rungs
        if item.top1 is not None and item.low is not None and item.high is not None
    ]
    if not rows:
        return None
    low, high = min(row[1] for row in rows), max(row[3] for row in rows)
    margin = max(0.005, (high - low) * 0.1)
    axis = Axis(
        title="top-1",
        low=max(0.0, low - margin),
        high=min(1.0, high + margin),
        form=lambda value: f"{value * 100:.4g} %",
    )
    described = "; ".join(f"{label}: {numbers.percent(value)}" for label, _, value, _, _ in rows)
    return interval_chart("Top-1 of every form with its 95 % interval", described, rows, axis)


def by_load(level: Level) -> tuple[object, ...]:
    """Return what puts levels in order: the kind of load, the batch, then how heavy it is."""
    modes = ("concurrency", "rate", "poisson", "trace")
    heavy = level.concurrency if level.request_rate is None else level.request_rate
    return modes.index(level.mode), level.batch_size, str(level.shapes), level.shared_memory, heavy


def _family(level: Level) -> str:
    """Return what levels of one curve share."""
    kind = {"concurrency": "", "rate": ", constant rate", "poisson": ", Poisson arrivals", "trace": ", trace"}[
        level.mode
    ]
    return level.of + kind


def _load(level: Level) -> str:
    return (
        f"{level.concurrency}"
        if level.mode == "concurrency"
        else f"{level.request_rate:g}/s"
        if level.request_rate
        else ""
    )
