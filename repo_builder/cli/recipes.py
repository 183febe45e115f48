"""``repo-builder recipes``."""

from __future__ import annotations

import json
from typing import Any

import click

from repo_builder import recipes
from repo_builder.core.errors import RecipeError, did_you_mean


@click.group("recipes", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the built-in recipes, or print one as TOML to start from.

    \b
    repo-builder recipes
    repo-builder recipes list --verbose
    repo-builder recipes show vgg > my_model.toml
    """
    if not ctx.invoked_subcommand:
        _list(verbose=False, as_json=as_json)


@command.command("list", short_help="List the built-in recipes.")
@click.option("--verbose", is_flag=True, help="Say which types of layers each model has, and the rules for them.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def listed(verbose: bool, as_json: bool) -> None:
    """List the built-in recipes; for a model of your own, `repo-builder layers` lists its layers.

    \b
    repo-builder recipes list --verbose
    repo-builder layers my_model.onnx
    """
    _list(verbose=verbose, as_json=as_json)


def _list(*, verbose: bool, as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    for item in (recipes.load(name) for name in recipes.built_in()):
        rows.append({"name": item.name, "description": item.description})
        if verbose:
            from repo_builder.flows.layers import kinds

            rules = [str(rule) for rule in item.quantize.layers]
            rows[-1] |= {"data": item.data.source, "layers": dict(kinds(item)), "rules": rules}
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        click.echo(f"{click.style(row['name'].ljust(width), bold=True)}  {row['description']}")
        if verbose:
            layers = ", ".join(f"{count} {kind}" for kind, count in row["layers"].items())
            for what, said in (("data", row["data"]), ("layers", layers), ("rules", "; ".join(row["rules"]) or "none")):
                click.echo(f"{'':{width}}    {what}: {said}")


@command.command("schema", short_help="Print the JSON schema of recipes, for editors.")
def schema() -> None:
    """Print the JSON schema of recipes, with which editors complete and check them.

    \b
    repo-builder recipes schema > recipe.schema.json
    """
    from repo_builder.recipes import declared

    click.echo(json.dumps(declared.json_schema(), indent=2, ensure_ascii=False))


@command.command("show")
@click.argument("name")
def show(name: str) -> None:
    """Print a built-in recipe as TOML."""
    known = recipes.built_in()
    if name not in known:
        raise RecipeError(f"there is no built-in recipe '{name}'", hint=did_you_mean(name, known))
    click.echo(known[name].read_text(encoding="utf-8"), nl=False)
