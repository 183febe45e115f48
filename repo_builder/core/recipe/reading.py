"""Recipe files as plain values: the built-in ones, a user's from a path, settings and tables on top of either."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from repo_builder.core import foreign
from repo_builder.core.bounds import shown
from repo_builder.core.errors import RecipeError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_PATHS = (("model", "source"), ("model", "checkpoint"), ("data", "source"), ("measure", "metric"))
_FOLDER = Path(__file__).resolve().parents[2] / "recipes"


def built_in() -> dict[str, Path]:
    """Return the built-in recipes: name → TOML file."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.toml"))}


def find(source: str | Path) -> Path:
    """Return the file of a built-in's name or of a path.

    Raises:
        RecipeError: There is none.
    """
    known = built_in()
    path = known.get(str(source), Path(source))
    if not path.is_file():
        hint = f"{did_you_mean(str(source), known)} (a recipe file ends in .toml)"
        raise RecipeError(f"there is no built-in recipe and no file '{source}'", hint=hint)
    return path


def document(source: str | Path, settings: Iterable[str], tables: Mapping[str, Any]) -> dict[str, Any]:
    """Read a recipe's values, with settings and tables applied, and a file's relative paths made absolute.

    Raises:
        RecipeError: No such recipe, it is not TOML, or a setting reaches nothing.
    """
    path = find(source)
    found = _document(path)
    apply(found, settings, tables)
    if str(source) not in built_in():
        _anchor(found, path.resolve().parent)
    return found


def apply(document: dict[str, Any], settings: Iterable[str], tables: Mapping[str, Any]) -> None:
    """Lay tables over a document, key by key, then ``key.path=value`` items, in place.

    Raises:
        RecipeError: A setting reaches nothing, or its value is no TOML.
    """
    _lay_over(document, tables)
    for setting in settings:
        _apply(document, setting)


def _lay_over(document: dict[str, Any], tables: Mapping[str, Any]) -> None:
    for key, value in tables.items():
        below = document.get(key)
        if isinstance(value, Mapping) and isinstance(below, dict):
            _lay_over(below, value)
        else:
            document[key] = _plain(value)


def _plain(value: Any) -> Any:  # noqa: ANN401 - any TOML value
    """Return a value as TOML has it: no tuples, no paths, no mappings but dictionaries."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def parsed(text: str) -> dict[str, Any]:
    """Return a TOML document's values.

    Raises:
        ValueError: It is not TOML.
    """
    found: dict[str, Any] = foreign.parsed(tomllib.loads, text)
    return found


def value(text: str) -> Any:  # noqa: ANN401 - any TOML value
    """Return a value as TOML has it, or the text itself where it is no TOML.

    Raises:
        ValueError: It is nested deeper, or longer, than is read.
    """
    try:
        return parsed(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _document(path: Path) -> dict[str, Any]:
    try:
        document = parsed(path.read_text(encoding="utf-8"))
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
        found = value(text)
    except ValueError as error:
        raise RecipeError(f"its value cannot be taken: {error}", where=f"--set {shown(dotted)}") from None
    *parents, last = dotted.split(".")
    node: Any = document
    for part in parents:
        node = _item(node, part, dotted)
    if isinstance(node, list):
        _item(node, last, dotted)
        node[int(last)] = found
    elif isinstance(node, dict):
        node[last] = found
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
    for section, key in _places(document):
        value = section.get(key)
        if not isinstance(value, str) or Path(value).is_absolute():
            continue
        module, colon, attribute = value.rpartition(":")
        source = folder.joinpath(*module.split(".")).with_suffix(".py") if colon else None
        if (folder / value).exists():
            section[key] = str(folder / value)
        elif source is not None and "." not in module and source.is_file():
            section[key] = f"{source}:{attribute}"


def _places(document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield every table and its key that may hold a path."""
    sections = ((document.get(table), key) for table, key in _PATHS)
    pipeline = document.get("pipeline")
    steps = [pipeline.get(side) for side in ("before", "after")] if isinstance(pipeline, dict) else []
    listed = ((step, key) for side in steps if isinstance(side, list) for step in side for key in ("file", "function"))
    yield from ((section, key) for section, key in (*sections, *listed) if isinstance(section, dict))
