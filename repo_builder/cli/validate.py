"""``repo-builder validate``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from repo_builder.core.errors import CheckFailed

_COLOURS = {"error": "red", "warning": "yellow", "info": "blue"}


@click.command("validate")
@click.argument("repository", type=click.Path(path_type=Path), default=Path("model_repository"))
@click.option("--model", "names", multiple=True, metavar="NAME", help="Report on this model only; repeatable.")
@click.option(
    "--runtime",
    default="any",
    show_default=True,
    metavar="any|embedded|container[:YY.MM]",
    help="Where it is to be served: what only one of them refuses is judged by that.",
)
@click.option("--strict", is_flag=True, help="Exit with 1 on warnings too.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(repository: Path, names: tuple[str, ...], runtime: str, strict: bool, as_json: bool) -> None:
    """Check a model REPOSITORY as Triton would, without starting it.

    Every config.pbtxt is parsed with Triton's protobuf and compared with the model file itself; versions, labels,
    warm-up, ensembles and stray files are looked at. A TensorRT plan is held against the manifest beside it; without
    one its engine is asked, where TensorRT and a GPU are. One line a finding; exit code 1 where there is an error.

    \b
    repo-builder validate model_repository
    repo-builder validate model_repository --model vgg --json
    repo-builder validate model_repository --runtime container:25.01
    """
    from repo_builder.flows.validating import validate

    found = validate(repository, names, runtime=runtime)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        for item in found.findings:
            click.echo(f"{click.style(item.level.ljust(7), fg=_COLOURS[item.level], bold=True)}  {item}")
    told = " and ".join(_count(found.count(level), level) for level in ("error", "warning"))
    told += f" in {_count(len(found.models), 'model')}"
    if not found.ok or (strict and found.count("warning")):
        raise CheckFailed(told, where=str(repository))
    if not as_json:
        click.echo(f"{click.style('ok'.ljust(7), fg='green', bold=True)}  {repository}: {told}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number or 'no'} {what}s"
