"""``repo-builder recipes``."""

from __future__ import annotations

import json

import click

from repo_builder import recipes
from repo_builder.core.errors import RecipeError, did_you_mean


@click.group("recipes", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the built-in recipes, or print one as TOML to start from.

    \b
    repo-builder recipes
    repo-builder recipes show vgg > my_model.toml
    """
    if ctx.invoked_subcommand:
        return
    found = [recipes.load(name) for name in recipes.built_in()]
    if as_json:
        click.echo(json.dumps([{"name": item.name, "description": item.description} for item in found], indent=2))
        return
    width = max(len(item.name) for item in found)
    for item in found:
        click.echo(f"{click.style(item.name.ljust(width), bold=True)}  {item.description}")


@command.command("schema")
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
