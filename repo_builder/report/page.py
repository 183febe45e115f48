"""A run as one self-contained HTML page: no script, no network, light, dark and on paper."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from repo_builder import __version__
from repo_builder.core.assets import template_folder
from repo_builder.report import charts, numbers
from repo_builder.report.verdict import verdict
from repo_builder.results import AccuracyResult, PerfRun

_TEMPLATE = "report.html.j2"
_MOST_CLASSES = 100  # of a table that a page shows and a browser can still lay out
_UNITS = {
    "_mib": (1 << 20, numbers.bytes_),
    "_bytes": (1, numbers.bytes_),
    "_us": (1, numbers.time_us),
    "_s": (1_000_000, numbers.time_us),
}
_TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)


def render(run: PerfRun) -> str:
    """Return the page's HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template_folder()),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(n=numbers)
    levels = tuple(sorted(run.levels, key=lambda item: charts.by_load(item.level)))
    page = environment.get_template(_TEMPLATE).render(
        run=dataclasses.replace(run, levels=levels, knee=None),  # which one is best, the verdict says
        version=__version__,
        verdict=verdict(run),
        searched=_address(run.searched),
        charts={
            "curve": charts.curve(levels),
            "cdf": charts.cdf(levels),
            "times": charts.times(levels),
            "rungs": charts.rungs(run.ladder) if run.ladder else None,
        },
        time_names=charts.TIME_PARTS,
        time_parts=charts.time_parts,
        shades=shades(run.accuracy) if run.accuracy and len(run.accuracy.confusion) <= _MOST_CLASSES else (),
        facts=flatten(run.environment),
    )
    return with_named_cells(page)


def with_named_cells(page: str) -> str:
    """Return a page each of whose cells bears its column's heading, as cards of narrow pages show it."""
    return _TABLE.sub(lambda found: _named_cells(found[0]), page)


def _named_cells(table: str) -> str:
    """Return a table each of whose cells bears its column's heading, shown on narrow pages."""
    head, body, rest = table.partition("<tbody>")
    names = [
        re.sub(r"<[^>]+>", " ", text).strip() for text in re.findall(r"<th(?: [^>]*)?>(.*?)</th>", head, re.DOTALL)
    ]

    def row(found: re.Match[str]) -> str:
        cells = itertools.count(0 if "<th" not in found[0] else 1)
        return re.sub(r"<td", lambda _: f'<td data-label="{names[min(next(cells), len(names) - 1)]}"', found[0])

    return head + body + re.sub(r"<tr.*?</tr>", row, rest, flags=re.DOTALL)


def _address(path: str) -> str:
    """Return the address of a file of this machine; empty for none."""
    return Path(path).absolute().as_uri() if path else ""


def shades(result: AccuracyResult) -> tuple[tuple[float, ...], ...]:
    """Return for every cell of the confusion matrix its share of the row, in [0, 1]."""
    return tuple(tuple(cell / max(1, sum(row)) for cell in row) for row in result.confusion)


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested values as ``outer.inner`` → text; what is empty is left out."""
    found: dict[str, str] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            found.update(flatten(item, f"{name}."))
        elif isinstance(item, list | tuple):
            for place, part in enumerate(item):
                found.update(
                    flatten(part, f"{name}[{place}].") if isinstance(part, Mapping) else {f"{name}[{place}]": str(part)}
                )
        elif item not in (None, ""):
            found.update([_human(name, item)])
    return found


def _human(name: str, value: Any) -> tuple[str, str]:  # noqa: ANN401 - a JSON value
    """Return a fact as people say it: a number whose unit its name tells becomes one with its unit."""
    for unit, (factor, form) in _UNITS.items():
        if name.endswith(unit) and isinstance(value, int | float):
            return name.removesuffix(unit), form(value * factor)
    return name, str(value)
