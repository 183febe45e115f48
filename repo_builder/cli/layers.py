"""``repo-builder layers``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click


@click.command("layers")
@click.argument("model", metavar="MODEL.onnx|RECIPE")
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Folder of the data set's files, instead of a download."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(model: str, data_dir: Path | None, as_json: bool) -> None:
    """List the layers of a model: what `name` and `type` of a rule in [[quantize.layers]] may select.

    MODEL is an .onnx file, a recipe's file or a built-in's name. Aliases are other names of a layer's type that rules
    may say. A layer that nothing selects takes the precision of what feeds it.

    \b
    repo-builder layers resnet50.onnx
    repo-builder layers vgg --json
    """
    from repo_builder.flows.layers import layers

    found = layers(model, data_dir=data_dir)
    if as_json:
        rows = [dataclasses.asdict(item) for item in found]
        click.echo(json.dumps({"model": model, "layers": rows}, indent=2, ensure_ascii=False))
        return
    from rich.table import Table
    from rich.text import Text

    from repo_builder.core import tables
    from repo_builder.core.progress import stdout_console

    table = Table(box=None, pad_edge=False)
    for heading in ("layer", "type", "aliases", "selected by"):
        table.add_column(heading, overflow="fold")
    for item in found:
        table.add_row(*map(Text, (item.name, item.type, ", ".join(item.aliases), item.selected_by)))
    tables.show(table, stdout_console())
