"""Dataclasses from plain TOML or JSON values and back, strictly: messages carry the key path and a did-you-mean."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from repo_builder.core.errors import RecipeError, did_you_mean
from repo_builder.core.tensors import DType

R = TypeVar("R")


def plain(value: Any) -> Any:  # noqa: ANN401 - any recipe value
    """Return a dataclass as values that TOML and JSON know; keys whose value is None are left out."""
    if isinstance(value, DType):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((item.name, plain(getattr(value, item.name))) for item in dataclasses.fields(value))
        return {key: item for key, item in pairs if item is not None}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def build(cls: type[R], value: Any, path: str = "") -> R:  # noqa: ANN401 - checked here
    """Make a dataclass from a table.

    Args:
        cls: The dataclass; its annotations say what a value may be.
        value: The table.
        path: Its key path, for messages.

    Raises:
        RecipeError: A key is unknown or missing, or a value has another type than its annotation.
    """
    if not isinstance(value, Mapping):
        raise RecipeError(f"expected a table, found {_shown(value)}", where=path or "recipe")
    hints = typing.get_type_hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in value:
        if key not in fields:
            raise RecipeError(f"unknown key '{key}'", where=_join(path, key), hint=did_you_mean(key, fields))
    for key, item in fields.items():
        needed = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if needed and key not in value:
            raise RecipeError(
                f"the key '{key}' is missing", where=path or "recipe", hint=f"add {_join(path, key)} = ..."
            )
    return cls(**{key: _convert(hints[key], item, _join(path, key)) for key, item in value.items()})


def _convert(kind: Any, value: Any, path: str) -> Any:  # noqa: ANN401 - one case a kind of annotation
    """Check one value against its annotation and return it in its final type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = next(item for item in arguments if item is not type(None))
        return _convert(inner, value, path)
    if origin is Literal:
        if value not in arguments:
            hint = did_you_mean(str(value), map(str, arguments))
            raise RecipeError(f"{_shown(value)} is not one of {', '.join(map(str, arguments))}", where=path, hint=hint)
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"expected an array, found {_shown(value)}", where=path)
        return tuple(_convert(arguments[0], item, f"{path}[{place}]") for place, item in enumerate(value))
    if origin is dict or kind is dict:
        if not isinstance(value, Mapping):
            raise RecipeError(f"expected a table, found {_shown(value)}", where=path)
        return dict(value)
    if kind is DType:
        try:
            return DType.of(str(value))
        except KeyError:
            raise RecipeError(
                f"{_shown(value)} is no data type",
                where=path,
                hint=did_you_mean(str(value), (item.value for item in DType)),
            ) from None
    if dataclasses.is_dataclass(kind):
        return build(typing.cast("type[Any]", kind), value, path)
    return _scalar(kind, value, path)


def _scalar(kind: type, value: Any, path: str) -> Any:  # noqa: ANN401 - checked here
    names = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise RecipeError(f"expected {names[kind]}, found {_shown(value)}", where=path)
    return value


def _shown(value: Any) -> str:  # noqa: ANN401 - any value
    return f"'{value}'" if isinstance(value, str) else f"{value!r}"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
