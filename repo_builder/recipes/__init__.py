"""Recipe files: the built-in ones in this folder, a user's from a path, and ``--set`` on top of either."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from repo_builder.core import codec
from repo_builder.core.bounds import shown
from repo_builder.core.errors import RecipeError, did_you_mean
from repo_builder.core.recipe import Recipe, parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = Path(__file__).resolve().parent


def built_in() -> dict[str, Path]:
    """Return the built-in recipes: name → TOML file."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.toml"))}


def load(source: str, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe by a built-in's name or a file's path, with settings applied on top.

    Relative paths in the file (checkpoint, data) are taken from the file's folder.

    Args:
        source: ``vgg`` or ``path/to/recipe.toml``.
        settings: ``key.path=value`` items; a value is TOML, or else a plain string.

    Raises:
        RecipeError: No such recipe, or it cannot be understood.
    """
    known = built_in()
    path = known.get(source, Path(source))
    if not path.is_file():
        hint = f"{did_you_mean(source, known)} (a recipe file ends in .toml)"
        raise RecipeError(f"there is no built-in recipe and no file '{source}'", hint=hint)
    document = _document(path)
    for setting in settings:
        _apply(document, setting)
    if source not in known:
        _anchor(document, path.resolve().parent)
    try:
        return parse(document)
    except RecipeError as error:
        where = f"{path.name}: {error.where}" if error.where else str(path)
        raise RecipeError(error.message, where=where, hint=error.hint) from None


def change(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """Return a recipe with ``key.path=value`` items applied.

    Raises:
        RecipeError: A setting reaches nothing, or its value makes no sense.
    """
    document = recipe.to_dict()
    for setting in settings:
        _apply(document, setting)
    return parse(document)


def _document(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = codec.parsed(tomllib.loads, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read ({error})", where=str(path)) from None
    except ValueError as error:
        raise RecipeError(f"is not TOML: {error}", where=str(path)) from None
    return document


def _apply(document: dict[str, Any], setting: str) -> None:
    """Set one dotted key; ``quantize.layers.0.precision`` reaches into an array."""
    dotted, equals, text = setting.partition("=")
    if not equals or not dotted:
        raise RecipeError(f"{shown(setting)} is not key.path=value", where="--set", hint="as in --set train.epochs=5")
    try:
        value = codec.parsed(tomllib.loads, f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    except ValueError as error:
        raise RecipeError(f"its value cannot be taken: {error}", where=f"--set {shown(dotted)}") from None
    *parents, last = dotted.split(".")
    node: Any = document
    for part in parents:
        node = _item(node, part, dotted)
    if isinstance(node, list):
        _item(node, last, dotted)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise RecipeError(f"'{dotted}' reaches into a value that has no keys", where="--set")


def _item(node: Any, part: str, dotted: str) -> Any:  # noqa: ANN401 - any TOML value
    if isinstance(node, list):
        if not (part.isascii() and part.isdecimal() and len(part) < 10) or int(part) >= len(node):
            raise RecipeError(f"{shown(part)} in {shown(dotted)} is not an index below {len(node)}", where="--set")
        return node[int(part)]
    if isinstance(node, dict):
        return node.setdefault(part, {})
    raise RecipeError(f"'{dotted}' reaches into a value that has no keys", where="--set")


def _anchor(document: dict[str, Any], folder: Path) -> None:
    """Make the document's relative paths absolute, also that of a ``module:function`` whose file is in the folder."""
    for table, key in (("model", "source"), ("model", "checkpoint"), ("data", "source"), ("measure", "metric")):
        section = document.get(table)
        value = section.get(key) if isinstance(section, dict) else None
        if not isinstance(section, dict) or not isinstance(value, str) or Path(value).is_absolute():
            continue
        module, colon, attribute = value.rpartition(":")
        source = folder.joinpath(*module.split(".")).with_suffix(".py") if colon else None
        if (folder / value).exists():
            section[key] = str(folder / value)
        elif source is not None and "." not in module and source.is_file():
            section[key] = f"{source}:{attribute}"
