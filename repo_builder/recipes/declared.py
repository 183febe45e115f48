"""What recipes may say, read off the declarations: a JSON schema for editors, and the tables of docs/recipes.md.

A key's type, default and bounds are those of its field in ``core/recipe``; its meaning is its line in the class's
docstring.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from repo_builder.core import codec
from repo_builder.core.bounds import Bound
from repo_builder.core.recipe import Recipe
from repo_builder.core.tensors import DType

SCHEMA_URL = "https://json-schema.org/draft/2020-12/schema"
_SCALARS: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_WORDS: dict[Any, str] = {str: "string", int: "whole number", float: "number", bool: "true or false"}


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe."""
    return {"$schema": SCHEMA_URL, "title": "A recipe of repo-builder", **_schema(Recipe)}


def tables() -> dict[str, str]:
    """Return a Markdown table for each table of a recipe: its header, as in ``[data]``, → the table."""
    found: dict[str, str] = {}
    for header, cls in _tables(Recipe, "", array=False):
        rows = [
            f"| `{item.name}` | {_default(item)} | {_allowed(kind)} | {_meanings(cls)[item.name]} |"
            for item, kind in _fields(cls)
            if not _inner(kind)
        ]
        found[header] = "\n".join(["| key | default | takes | meaning |", "|---|---|---|---|", *rows])
    return found


def _fields(cls: Any) -> Iterator[tuple[dataclasses.Field[Any], Any]]:  # noqa: ANN401 - a dataclass
    hints = typing.get_type_hints(cls, include_extras=True)
    return ((item, hints[item.name]) for item in dataclasses.fields(cls))


def _tables(cls: Any, name: str, *, array: bool) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - a dataclass
    """Yield a table's header and class, and those below it; of tables of several kinds each kind, by its own word."""
    yield (f"[[{name}]]" if array else f"[{name}]") if name else "top level", cls
    for item, kind in _fields(cls):
        inner, many = _inner(kind), typing.get_origin(_bare(kind)[0]) is tuple
        below = f"{name}.{item.name}" if name else item.name
        if len(inner) == 1:
            yield from _tables(inner[0], below, array=many)
        elif item.name != "after":  # the same kinds as those before
            for one in inner:
                key, told = _word(one)
                yield f'[[{below}]] {key} = "{told}"', one


def _inner(kind: Any) -> tuple[Any, ...]:  # noqa: ANN401 - the dataclasses that a field holds
    kind, _ = _bare(kind)
    if typing.get_origin(kind) is tuple:
        kind, _ = _bare(typing.get_args(kind)[0])
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    return tuple(item for item in kinds if dataclasses.is_dataclass(item))


def _word(cls: Any) -> tuple[str, str]:  # noqa: ANN401 - a dataclass
    """Return the key, and its one word, by which a table of several kinds is known to be of this one."""
    hints = ((item.name, kind) for item, kind in _fields(cls))
    return next((name, typing.get_args(kind)[0]) for name, kind in hints if typing.get_origin(kind) is Literal)


def _bare(kind: Any) -> tuple[Any, tuple[Bound, ...]]:  # noqa: ANN401 - any annotation
    """Return an annotation without its bounds and without None, and its bounds."""
    bounds: tuple[Bound, ...] = ()
    while True:
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is Annotated:
            kind, bounds = arguments[0], (*bounds, *(item for item in arguments[1:] if isinstance(item, Bound)))
        elif origin in (typing.Union, types.UnionType) and type(None) in arguments and len(arguments) == 2:
            kind = next(item for item in arguments if item is not type(None))
        else:
            return kind, bounds


@functools.cache
def _meanings(cls: Any) -> dict[str, str]:  # noqa: ANN401 - a dataclass
    """Return what a class's docstring says of each field, on one line."""
    texts = ((inspect.getdoc(one) or "").partition("Attributes:\n")[2] for one in reversed(cls.__mro__[:-1]))
    pattern = r"^    (\w+): ((?:.+\n?)(?:^     +.+\n?)*)"
    entries = [entry for text in texts for entry in re.findall(pattern, text, flags=re.MULTILINE)]
    return {name: " ".join(meaning.replace("``", "`").split()).rstrip(".") for name, meaning in entries}


def _default(item: dataclasses.Field[Any]) -> str:
    if item.default_factory is not dataclasses.MISSING:
        value = codec.plain(item.default_factory())
    elif item.default is dataclasses.MISSING:
        return "required"
    else:
        value = codec.plain(item.default)
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _allowed(kind: Any) -> str:  # noqa: ANN401 - any annotation
    """Return what a key takes in words, as in ``whole number, at least 1``."""
    kind, bounds = _bare(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        words = ", ".join(f"`{item}`" for item in arguments)
    elif origin in (tuple, list):
        words = f"array of: {_allowed(arguments[0])}"
    elif origin is dict or kind is dict:
        words = "table"
    elif kind is DType:
        words = "a data type"
    elif dataclasses.is_dataclass(kind):
        words = "table"
    else:
        words = _WORDS[kind]
    limits = [item.words() for item in bounds]
    return ", ".join([words, *(item for item in limits if item)])


def _schema(kind: Any) -> dict[str, Any]:  # noqa: ANN401 - any annotation
    kind, bounds = _bare(kind)
    found = _shape(kind)
    for bound in bounds:
        names = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
        found |= {word: getattr(bound, name) for name, word in names.items() if getattr(bound, name) is not None}
        if bound.nonempty:
            found["minItems"] = 1
        if bound.pattern is not None:
            found["pattern"] = f"^(?:{bound.pattern})$"
        if bound.most_bytes is not None:
            found["maxLength"] = bound.most_bytes
    return found


def _shape(kind: Any) -> dict[str, Any]:  # noqa: ANN401 - any annotation
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _object(kind)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(item) for item in arguments]}
    if origin in (tuple, list):
        return {"type": "array", "items": _schema(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": True if arguments[1] is Any else _schema(arguments[1])}
    if kind is DType:
        return {"enum": [item.value for item in DType]}
    return {"type": _SCALARS[kind]}


def _object(cls: Any) -> dict[str, Any]:  # noqa: ANN401 - a dataclass
    properties: dict[str, Any] = {}
    needed: list[str] = []
    for item, kind in _fields(cls):
        properties[item.name] = {"description": _meanings(cls)[item.name], **_schema(kind)}
        if item.default is not dataclasses.MISSING and item.default is not None:
            properties[item.name]["default"] = codec.plain(item.default)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            needed.append(item.name)
    return {"type": "object", "additionalProperties": False, "required": needed, "properties": properties}
