"""``repo-builder init``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command("init")
@click.argument("name_or_model", metavar="[NAME]")
@click.argument("model", required=False, metavar="MODEL")
@click.option("--data", metavar="SOURCE", help="Its samples: a .npz, a .csv, a folder, a built-in or module:function.")
@click.option(
    "--argument", "arguments", multiple=True, metavar="KEY=VALUE", help="An argument of the function; repeatable."
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def command(
    name_or_model: str,
    model: str | None,
    data: str | None,
    arguments: tuple[str, ...],
    force: bool,
) -> None:
    """Write NAME.toml, a commented recipe for MODEL: an .onnx file, or module:function that returns a torch module.

    Inputs, outputs, their types and dimensions, the axis that counts samples, the task and rules for the layers are
    read off the model, and off the samples where --data names some. What is left to decide is said on stderr, and
    stands at the top of the file. NAME is the model's name in Triton; left out, it is the file's.

    \b
    repo-builder init resnet resnet50.onnx --data images.npz
    repo-builder init my_net my_module:make --argument width=0.5
    repo-builder build resnet.toml
    """
    from repo_builder.core import progress
    from repo_builder.flows import init

    source = model or name_or_model
    name = name_or_model if model else init.default_name(source)
    made = init.draft(name, source, data=data, arguments=dict(_argument(item) for item in arguments))
    path = init.write(made, Path(f"{made.name}.toml"), force=force)
    console = progress.stderr_console()
    for line in made.found:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if made.undecided:
        console.print("left to decide:", markup=False)
        for line in made.undecided:
            console.print(f"  - {line}", markup=False, highlight=False, soft_wrap=True)
    click.echo(path)


def _argument(text: str) -> tuple[str, Any]:
    from repo_builder.core.recipe import reading

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f"'{text}' is not KEY=VALUE", param_hint="--argument")
    return key, reading.value(value)
