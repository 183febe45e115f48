"""What ``sense`` and a search found as one self-contained HTML page each, in the report's own dress."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from repo_builder import __version__
from repo_builder.core.assets import template_folder
from repo_builder.core.details import SpeedRecord, TriedRecord
from repo_builder.core.records import LayerRecord
from repo_builder.report import choice, numbers
from repo_builder.report.page import flatten, with_named_cells
from repo_builder.report.spots import Spot, spot_chart
from repo_builder.results.sensing import LayerSense, Sensed

_KEYS = {"faster": 2, "alike": 7, "slower": 1}
_LEGEND = ((2, "faster beyond noise"), (7, "no difference beyond noise"), (1, "slower beyond noise"))


def sense_page(found: Sensed, environment: Mapping[str, Any]) -> str:
    """Return the page of one pass over the layers."""
    return _rendered("sense.html.j2", found=found, chart=sense_chart(found), facts=flatten(environment))


def search_page(
    name: str,
    tried: Sequence[TriedRecord],
    layers: Sequence[LayerRecord],
    lines: Sequence[str],
    facts: Mapping[str, Any],
) -> str:
    """Return the page of a search.

    Args:
        name: The model's.
        tried: What was tried, in turn.
        layers: What each layer became.
        lines: The verdict.
        facts: What else is told, nested.
    """
    return _rendered(
        "search.html.j2",
        name=name,
        tried=tried,
        layers=layers,
        lines=lines,
        chart=search_chart(tried),
        facts=flatten(facts),
    )


def sense_chart(found: Sensed) -> Markup:
    """Return gain against loss: one point a layer and precision."""
    spots = []
    for row in sorted(found.rows, key=lambda item: -abs(item.saved_us[0]) if item.saved_us else 0.0):
        if row.saved_us and row.sqnr_db is not None:
            label = row.name if len({item.precision for item in found.rows}) == 1 else f"{row.name} {row.precision}"
            whole = row.speed[0].reference_us / 100
            y, low, high = (value / whole for value in row.saved_us)
            spots.append(Spot(label=label, x=-row.sqnr_db, y=y, low=low, high=high, colour=_KEYS[_said(row)]))
    described = "; ".join(f"{item.label}: saves {item.y:.1f} % at {-item.x:.1f} dB" for item in spots)
    size = next((row.speed[0].batch_size for row in found.rows if row.speed), 1)
    axes = "loss: noise at the outputs, dB of the signal", f"time saved at batch {size}, % of fp32"
    return spot_chart("Gain against loss, layer by layer", described, spots, axes, legend=_LEGEND, level=0.0)


def search_chart(tried: Sequence[TriedRecord]) -> Markup | None:
    """Return speed against what accuracy costs, the front joined; None where nothing was timed."""
    timed = [row for row in tried if row.speed and not row.against]
    points = all(row.drop is not None for row in timed)
    spots = {}
    for row in timed:
        if row.sqnr_db is not None:
            cost = row.drop.points if points and row.drop else -min(row.sqnr_db or 0.0, 100.0)
            colour = 0 if row.chosen else 1 if choice.refused(row) else 2
            spots[row.what] = Spot(label=row.what, x=cost, y=_mean(row.speed), colour=colour, ring=row.chosen)
    if not spots:
        return None
    front: list[Spot] = []
    for item in sorted((spots[row.what] for row in timed if row.front), key=lambda item: (item.x, -item.y)):
        if not front or item.y > front[-1].y:  # others are on it by their size
            front.append(item)
    described = "; ".join(f"{one.label}: {one.y:.2f} times as fast at {one.x:.2f}" for one in spots.values())
    axes = (
        "points of accuracy lost on the validation split" if points else "loss: noise at the outputs, dB of the signal",
        "times as fast as fp32",
    )
    ordered = sorted(spots.values(), key=lambda item: (not item.ring, -item.y))
    legend = ((0, "taken"), (2, "within the limit"), (1, "beyond the limit"))
    return spot_chart("Speed against accuracy", described, ordered, axes, legend=legend, level=1.0, path=front)


def _said(row: LayerSense) -> str:
    return row.speed[0].verdict


def _mean(rows: Sequence[SpeedRecord]) -> float:
    return math.exp(sum(math.log(row.speedup) for row in rows) / len(rows))


def _rendered(template: str, **values: Any) -> str:  # noqa: ANN401 - what the template shows
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template_folder()),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        n=numbers, speeds=choice.speeds, cost=choice.cost, standing=choice.standing, refused=choice.refused
    )
    return with_named_cells(environment.get_template(template).render(version=__version__, **values))
