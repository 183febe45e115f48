"""``repo-builder inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repo_builder.core.errors import RepositoryError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from repo_builder.compile.inspection import Inspection
    from repo_builder.core.records import Verdict
    from repo_builder.flows.inspecting import Inspected


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(path: Path, as_json: bool) -> None:
    """Show what every layer of a compiled model is: the precision asked and got, the kernel, and what was fused.

    PATH is a model's folder in a repository, build/NAME, a .plan or an .onnx file. The manifest that repo-builder
    writes beside a plan is enough; for a plan from elsewhere the engine is asked, which takes TensorRT and its GPU.

    \b
    repo-builder inspect model_repository/vgg
    repo-builder inspect some.plan --json
    """
    from repo_builder.flows.inspecting import inspect

    found = inspect(path)
    if found.plan is not None and found.plan.ignored:
        _warn(found.plan)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    elif found.plan is not None:
        _show_plan(found.plan)
    else:
        _show_graph(found)


def _show_graph(found: Inspected) -> None:
    """Print the precision that an ONNX graph gives each layer, and what each becomes where that is known."""
    ran = any(item.got is not None for item in found.graph)
    headings = ("layer", "operator", "precision", *(("runs in", "as", "reason") if ran else ()))
    rows = []
    for item in found.graph:
        weights = "" if item.block is None else f" weights, block {item.block}"
        became = (item.got or "", item.runs_as or "", item.reason or "") if ran else ()
        rows.append((item.layer, item.operator, f"{item.precision}{weights}", *became))
    _print(f"{found.model}", headings, rows)


def _remark(item: Verdict) -> str:
    """Return what a reader should know of a layer that the engine does not show as it was asked."""
    if item.holds:
        return ""
    if item.departs:
        return "not as asked"
    return f"fused: {item.region}" if item.region else "in more bits than asked" if item.kind else "not told"


def _warn(found: Inspection) -> None:
    """Say why the manifest beside a plan was not believed."""
    from repo_builder.core.artifacts import MANIFEST

    told = RepositoryError(found.ignored, where=str(found.model.with_name(MANIFEST)), hint="only the engine was asked")
    click.echo(f"warning: {told}", err=True)


def _show_plan(found: Inspection) -> None:
    """Print what the manifest and the engine tell."""
    click.echo(f"{found.model}  ({found.source})")
    for name, value in found.facts.items():
        click.echo(f"  {name.replace('_', ' ')}: {_plain(value)}")
    if found.verdicts:
        rows = [(item.layer, item.asked, item.got, _remark(item), item.kind, item.tactic) for item in found.verdicts]
        _print("Layers of the recipe", ("layer", "asked", "got", "", "engine layer", "kernel"), rows)
    if found.layers:
        listed = [(item.precision, item.kind, item.name, item.tactic) for item in found.layers]
        _print("Layers of the engine", ("precision", "type", "fused", "kernel"), listed)


def _plain(value: Any) -> str:  # noqa: ANN401 - a JSON value
    return value if isinstance(value, str) else json.dumps(value)


def _print(title: str, headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from repo_builder.core import tables
    from repo_builder.core.progress import stdout_console

    click.echo(title)
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    tables.show(table, stdout_console())
