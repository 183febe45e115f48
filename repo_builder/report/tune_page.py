"""A search as one self-contained HTML page: no script, no network, light, dark and on paper."""

from __future__ import annotations

from collections.abc import Callable

import jinja2
from markupsafe import Markup

from repo_builder.core.assets import template_folder
from repo_builder.report import numbers, tuned
from repo_builder.report.page import flatten
from repo_builder.report.svg import Axis, Line, bar_chart, line_chart
from repo_builder.results.tuning import Trial, TrialLevel, TuneRun, front

_TEMPLATE = "tune.html.j2"
_PARTS = ("queue", "compute", "network + client")
_MOST_BARS = 12
# title, field of a level, how it is written; a column that no load has a figure for is left out
_COSTS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("machine CPU", "cpu_utilisation", lambda value: numbers.percent(value, 0)),
    ("server CPU an inference", "server_cpu_us", numbers.time_us),
    ("memory", "memory_bytes", numbers.bytes_),
    ("CPU energy an inference", "cpu_energy_j", numbers.energy),
    ("GPU", "gpu_utilisation", lambda value: numbers.percent(value, 0)),
    ("GPU memory", "gpu_memory_bytes", numbers.bytes_),
    ("GPU energy an inference", "energy_j", numbers.energy),
)


def render(run: TuneRun) -> str:
    """Return the page's HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template_folder()),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(n=numbers, t=tuned)
    levels = [(trial, item) for trial in run.trials for item in trial.levels]
    return environment.get_template(_TEMPLATE).render(
        run=run,
        sentences=tuned.sentences(run),
        chart=scatter(run, levels),
        front=front(levels),
        times=times(run),
        costs=[item for item in _COSTS if any(getattr(level, item[1]) is not None for _, level in levels)],
        facts=flatten(run.environment),
    )


def scatter(run: TuneRun, levels: list[tuple[Trial, TrialLevel]]) -> Markup | None:
    """Return p99 over throughput: every load a dot, the Pareto front a line, the limit another; None without loads."""
    whole = [(trial, item) for trial, item in levels if item.whole]
    if len(whole) < 2:
        return None
    limit = run.max_p99_us
    groups = {
        "within the limit" if limit else "load": [item for item in whole if item[1].within(limit)],
        "over the limit": [item for item in whole if not item[1].within(limit)],
    }
    lines = [
        Line(name=name, points=[_spot(item) for _, item in group], colour=colour, joined=False)
        for colour, (name, group) in enumerate(groups.items())
        if group
    ]
    best = front(whole)
    lines.append(Line(name="Pareto front", points=[_spot(item) for _, item in best], colour=2, marked=False))
    fastest = max(item.infer_per_s.value for _, item in whole) * 1.08
    spots = [item.p99_us.value / 1000 for _, item in whole]
    low, high = min(spots) * 0.8, max(spots) * 1.25
    if limit and low < limit / 1000 < high:
        lines.append(
            Line(name="limit", points=[(0, limit / 1000), (fastest, limit / 1000)], colour=7, dash=1, marked=False)
        )
    if run.best_level is not None:
        lines.append(Line(name="chosen", points=[_spot(run.best_level)], colour=3, dash=1, joined=False))
    described = "; ".join(
        f"{trial.settings} at concurrency {item.concurrency}: {numbers.rate(item.infer_per_s.value)} inferences/s, "
        f"p99 {numbers.time_us(item.p99_us.value)}"
        for trial, item in best
    )
    x = Axis(title="inferences/s", low=0, high=fastest, form=lambda value: f"{value:,.0f}")
    y = Axis(title="p99, ms (logarithmic)", low=low, high=high, log=True)
    return line_chart("p99 over throughput of every load", described, lines, x, y, markers=True)


def times(run: TuneRun) -> Markup | None:
    """Return stacked bars of the mean latency under each configuration's best load, the fastest first."""
    known = [(trial, level) for trial in run.trials if (level := trial.best(run.max_p99_us)) is not None]
    known.sort(key=lambda item: -item[1].infer_per_s.value)
    rows = [
        (f"trial {trial.number}", _parts(level)) for trial, level in known[:_MOST_BARS] if level.queue_us is not None
    ]
    if not rows:
        return None
    described = "; ".join(
        f"{label}: " + ", ".join(f"{name} {numbers.time_us(us)}" for name, us in zip(_PARTS, parts, strict=True))
        for label, parts in rows
    )
    return bar_chart("Where the time goes", described, rows, _PARTS, numbers.time_us)


def _parts(level: TrialLevel) -> list[float]:
    queue, compute = level.queue_us or 0.0, level.compute_us or 0.0
    return [queue, compute, max(0.0, level.mean_us - queue - compute)]


def _spot(level: TrialLevel) -> tuple[float, float]:
    return level.infer_per_s.value, level.p99_us.value / 1000
