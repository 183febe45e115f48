"""The one codec: frozen dataclasses from plain TOML or JSON values and back, strictly.

Recipes, manifests, measurements and what an engine's inspector told are all read and written here. A class's
annotations say what a value may be, ``Annotated[..., Bound(...)]`` what it may not although its type is right.
Messages carry the key path and a did-you-mean.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from repo_builder.core.bounds import Bound, Former, shown
from repo_builder.core.errors import RecipeError, did_you_mean
from repo_builder.core.tensors import DType

R = TypeVar("R")

_MOST_DEEP = 64  # no value of ours is nested deeper than ten; Python's own limit would be a traceback
_LARGEST = 2**64  # what any count, size or seed fits below; larger ones overflow in the libraries they are handed to
_AS_TEXT = "put it in quotes: dates and times of TOML are not kept"
_WORDS: dict[Any, str] = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def plain(value: Any, *, nulls: bool = False) -> Any:  # noqa: ANN401 - any value of a dataclass
    """Return a dataclass as values that TOML and JSON know.

    Args:
        value: The dataclass, or a value in one.
        nulls: Whether what is None stands there as null; else its key is left out.
    """
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((item.name, plain(getattr(value, item.name), nulls=nulls)) for item in dataclasses.fields(value))
        return {key: item for key, item in pairs if nulls or item is not None}
    if isinstance(value, list | tuple):
        return [plain(item, nulls=nulls) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item, nulls=nulls) for key, item in value.items()}
    return value


def build(cls: type[R], value: Any, path: str = "") -> R:  # noqa: ANN401 - checked here
    """Make a dataclass from a table; a null stands for a key that is left out.

    Args:
        cls: The dataclass; its annotations say what a value may be.
        value: The table.
        path: Its key path, for messages; empty for the whole document.

    Raises:
        RecipeError: A key is unknown or missing, or a value has another type than its annotation or is out of bounds.
    """
    if not isinstance(value, Mapping):
        raise RecipeError(f"expected a table, found {shown(value)}", where=path or None)
    if _depth(path) > _MOST_DEEP:
        raise RecipeError("is nested too deep", where=shown(path))
    hints, fields = _annotations(cls)  # type: ignore[arg-type] # every class is hashable
    for key in value:
        if key not in fields:
            hint = _renamed(hints, str(key), value[key]) or did_you_mean(str(key), fields)
            raise RecipeError(f"unknown key {shown(key)}", where=_join(path, key), hint=hint)
    given = {key: item for key, item in value.items() if item is not None}
    for key, item in fields.items():
        needed = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if needed and key not in given:
            raise RecipeError(f"the key '{key}' is missing", where=path or None, hint=f"add {_join(path, key)} = ...")
    values = {key: convert(hints[key], item, _join(path, key)) for key, item in given.items()}
    try:
        return cls(**values)
    except RecipeError as error:  # what the class refuses of several values together; its place is below this table
        where = _join(path, error.where) if error.where else path
        raise RecipeError(error.message, where=where or None, hint=error.hint) from None
    except ValueError as error:
        raise RecipeError(str(error), where=path or None) from None


@functools.cache
def _annotations(cls: Any) -> tuple[dict[str, Any], dict[str, dataclasses.Field[Any]]]:  # noqa: ANN401 - a dataclass
    fields = {item.name: item for item in dataclasses.fields(cls) if item.init}
    return typing.get_type_hints(cls, include_extras=True), fields


def _renamed(hints: Mapping[str, Any], key: str, value: Any) -> str | None:  # noqa: ANN401 - whatever a user wrote
    """Return what to write instead of a key that is the former name of a field; None where it is none."""
    for name, kind in hints.items():
        for told in typing.get_args(kind)[1:] if typing.get_origin(kind) is Annotated else ():
            if isinstance(told, Former) and told.name == key:
                return told.hint(name, value)
    return None


def convert(kind: Any, value: Any, path: str) -> Any:  # noqa: ANN401 - any annotation, any value
    """Check one value against its annotation and return it in its final type.

    Raises:
        RecipeError: It has another type, or is out of bounds.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        found = convert(arguments[0], value, path)
        for bound in arguments[1:]:
            if isinstance(bound, Bound) and found is not None:
                bound.check(found, path)
        return found
    if origin in (typing.Union, types.UnionType):
        return _one_of(arguments, value, path)
    if origin is Literal:
        return _literal(arguments, value, path)
    if origin in (tuple, list, Sequence):
        items = _items(arguments, value, path)
        return items if origin is list else tuple(items)
    if origin is dict or kind is dict:
        return _table(arguments[1] if arguments else Any, value, path)
    if kind is Any:
        return _anything(value, path)
    if kind is DType:
        return _dtype(value, path)
    if dataclasses.is_dataclass(kind):
        return build(typing.cast("type[Any]", kind), value, path)
    return _scalar(kind, value, path)


def knows(kind: Any) -> bool:  # noqa: ANN401 - any annotation
    """Whether values can be checked against an annotation: it is made of scalars, arrays, tables and unions of them."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType, tuple, list, dict, Sequence):
        return all(item in (Ellipsis, type(None)) or knows(item) for item in arguments)
    return kind in _WORDS or origin is Literal


def _one_of(kinds: tuple[Any, ...], value: Any, path: str) -> Any:  # noqa: ANN401 - any value
    """Convert to the member of a union that the value is of; tables are told apart by a field of one fixed word."""
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(item for item in kinds if item is not type(None))
    tables = [item for item in kinds if dataclasses.is_dataclass(item)]
    if len(tables) > 1 and isinstance(value, Mapping):
        return build(_told_apart(tables, value, path), value, path)
    refused: list[RecipeError] = []
    for kind in kinds:
        try:
            return convert(kind, value, path)
        except RecipeError as error:  # noqa: PERF203 - a handful of members
            refused.append(error)
    if len(refused) == 1:
        raise refused[0]
    raise RecipeError(" and ".join(dict.fromkeys(item.message for item in refused)), where=path)


def _told_apart(kinds: list[Any], value: Mapping[str, Any], path: str) -> Any:  # noqa: ANN401 - one of the kinds
    words: dict[Any, Any] = {}
    for kind in kinds:
        hints = _annotations(kind)[0].items()
        name, word = next((key, typing.get_args(hint)[0]) for key, hint in hints if typing.get_origin(hint) is Literal)
        words[word] = kind
    if name not in value:
        raise RecipeError(f"the key '{name}' is missing", where=path, hint=f"one of {', '.join(words)}")
    return words[_literal(tuple(words), value.get(name), _join(path, name))]


def _literal(words: tuple[Any, ...], value: Any, path: str) -> Any:  # noqa: ANN401 - any value
    if not any(value == item and type(value) is type(item) for item in words):
        listed = ", ".join(map(str, words))
        hint = did_you_mean(str(value), map(str, words)) if isinstance(value, str) else None
        raise RecipeError(f"{shown(value)} is not one of {listed}", where=path, hint=hint)
    return value


def _items(kinds: tuple[Any, ...], value: Any, path: str) -> list[Any]:  # noqa: ANN401 - any value
    """Convert the items of ``tuple[X, ...]``, ``list[X]`` or ``tuple[X, Y]``."""
    if not isinstance(value, list | tuple):
        raise RecipeError(f"expected an array, found {shown(value)}", where=path)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = kinds[:1]
    if len(kinds) == 1:
        kinds = kinds * len(value)
    if len(kinds) != len(value):
        raise RecipeError(f"expected {len(kinds)} items, found {len(value)}", where=path)
    return [
        convert(kind, item, f"{path}[{place}]") for place, (kind, item) in enumerate(zip(kinds, value, strict=True))
    ]


def _table(kind: Any, value: Any, path: str) -> dict[str, Any]:  # noqa: ANN401 - any value
    if not isinstance(value, Mapping):
        raise RecipeError(f"expected a table, found {shown(value)}", where=path)
    return {key: convert(kind, item, _join(path, key)) for key, item in value.items()}


def _anything(value: Any, path: str) -> Any:  # noqa: ANN401 - any TOML or JSON value
    """Return a value that only a user's function understands; what no file could say again is refused."""
    if _depth(path) > _MOST_DEEP:
        raise RecipeError("is nested too deep", where=shown(path))
    if isinstance(value, Mapping):
        return _table(Any, value, path)
    if isinstance(value, list | tuple):
        return [_anything(item, f"{path}[{place}]") for place, item in enumerate(value)]
    if isinstance(value, int) and not isinstance(value, bool):
        return _scalar(int, value, path)
    if value is None or isinstance(value, bool | float | str):
        return value
    raise RecipeError(f"expected text, a number, a list or a table, found {shown(value)}", where=path, hint=_AS_TEXT)


def _depth(path: str) -> int:
    return path.count(".") + path.count("[")


def _dtype(value: Any, path: str) -> DType:  # noqa: ANN401 - any value
    if isinstance(value, DType):
        return value
    try:
        return DType.of(str(value))
    except KeyError:
        hint = did_you_mean(str(value), (item.value for item in DType))
        raise RecipeError(f"{shown(value)} is no data type", where=path, hint=hint) from None


def _scalar(kind: Any, value: Any, path: str) -> Any:  # noqa: ANN401 - checked here
    if kind is Path:
        return Path(_scalar(str, value, path))
    number = isinstance(value, int) and not isinstance(value, bool)
    if number and kind in (int, float) and not -_LARGEST < value < _LARGEST:
        raise RecipeError(f"{shown(value)} is too large", where=path)
    if kind is float and number:
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise RecipeError(f"expected {_WORDS[kind]}, found {shown(value)}", where=path)
    if kind is float and not math.isfinite(value):
        raise RecipeError(f"{value} is not a finite number", where=path)
    return value


def _join(path: str, key: Any) -> str:  # noqa: ANN401 - a key that may be no string
    text = key if isinstance(key, str) and len(key) <= 60 else shown(key)
    return f"{path}.{text}" if path else text
