"""``repo-builder inspect``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repo_builder.core.errors import RepositoryError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from repo_builder.compile.inspection import Inspection
    from repo_builder.core.records import Verdict


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
    from repo_builder.compile import inspection

    model = inspection.locate(path)
    if model.suffix == ".onnx":
        _show_onnx(model, as_json=as_json)
    else:
        _show_plan(inspection.inspect_plan(model), as_json=as_json)


def _show_onnx(model: Path, *, as_json: bool) -> None:
    """Print the precision that an ONNX graph gives each layer."""
    from repo_builder.core import loading
    from repo_builder.core.errors import MissingDependency
    from repo_builder.core.graphs import layer_of
    from repo_builder.export import qdq

    try:
        import onnx

        graph = onnx.load(model, load_external_data=False)
    except Exception as error:  # onnx's and protobuf's errors share no base class
        hint = "copy it again, or export it again with repo-builder build --force"
        raise RepositoryError(f"is not an ONNX model ({error})", where=str(model), hint=hint) from error
    precisions = qdq.layer_precisions(graph)
    operators = {layer_of(node): node.op_type for node in graph.graph.node}
    rows = [{"layer": name, "operator": operators[name], "precision": kind} for name, kind in precisions.items()]
    source = "graph"
    try:
        with loading.needs("onnxruntime", what="showing what layers become"):
            from repo_builder.compile.onnxruntime.became import became
    except MissingDependency:
        pass  # the graph alone tells what was asked
    else:
        source = "graph, onnxruntime"
        told = {item.name: item for item in became(model, list(precisions))}
        for row in rows:
            item = told[row["layer"]]
            row.update(got=item.got, runs_as=item.operator, reason=item.reason)
    blocks = {
        layer_of(node): item.i for node in graph.graph.node for item in node.attribute if item.name == "block_size"
    }
    if as_json:
        told_of = [
            row | {"weight_bits": 4, "block": blocks[row["layer"]]} if row["layer"] in blocks else row for row in rows
        ]
        click.echo(json.dumps({"model": str(model), "source": source, "layers": told_of}, indent=2))
        return
    for row in rows:
        if row["layer"] in blocks:
            row["precision"] += f" weights, block {blocks[row['layer']]}"
    headings = ("layer", "operator", "precision", "runs in", "as", "reason")[: len(rows[0]) if rows else None]
    _print(f"{model}", headings, (tuple(row.values()) for row in rows))


def _remark(item: Verdict) -> str:
    """Return what a reader should know of a layer that the engine does not show as it was asked."""
    if item.holds:
        return ""
    if item.departs:
        return "not as asked"
    return f"fused: {item.region}" if item.region else "in more bits than asked" if item.kind else "not told"


def _show_plan(found: Inspection, *, as_json: bool) -> None:
    """Print what the manifest and the engine tell, and why the manifest was not believed."""
    from repo_builder.core.artifacts import MANIFEST

    if found.ignored:
        told = RepositoryError(
            found.ignored, where=str(found.model.with_name(MANIFEST)), hint="only the engine was asked"
        )
        click.echo(f"warning: {told}", err=True)
    if as_json:
        document = dataclasses.asdict(found) | {"model": str(found.model)}
        click.echo(json.dumps(document, indent=2))
        return
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
