"""How a torch module is called and what it gives, told without torch: arguments by name, outputs as a flat tuple."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any


def outputs_of(result: Any, names: Sequence[str] = ()) -> tuple[Any, ...]:  # noqa: ANN401 - whatever a forward returns
    """Return a module's outputs as a flat tuple: those of a tensor, tuple, list, dict or dataclass, nested or not.

    Args:
        result: What the module returned; what is None or no tensor is left out.
        names: Names of the outputs; where a mapping has them all, they are taken by name.
    """
    if isinstance(result, Mapping) and names and set(names) <= set(result):
        return tuple(_tensors([result[name] for name in names]))
    if dataclasses.is_dataclass(result) and names and all(hasattr(result, name) for name in names):
        return tuple(_tensors([getattr(result, name) for name in names]))
    return tuple(_tensors(result))


def _tensors(result: Any) -> Iterator[Any]:  # noqa: ANN401 - as above
    if hasattr(result, "detach"):
        yield result
    elif isinstance(result, Mapping):
        yield from _tensors(list(result.values()))
    elif isinstance(result, list | tuple):
        for item in result:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        yield from _tensors([getattr(result, item.name) for item in dataclasses.fields(result)])


def argument_order(module: Any, names: Sequence[str]) -> tuple[tuple[str, ...], str]:  # noqa: ANN401 - a torch module
    """Return inputs in the order in which a module's forward takes them, and a warning or an empty text.

    They go by name where forward has arguments of all their names, else in the order given.
    """
    with suppress(TypeError, ValueError):
        parameters = inspect.signature(module.forward).parameters.values()
        takes = [item.name for item in parameters if item.kind is item.POSITIONAL_OR_KEYWORD]
        if set(names) <= set(takes[: len(names)]):
            return tuple(name for name in takes if name in names), ""
        if len(names) > 1 and takes:
            text = (
                f"forward takes ({', '.join(takes[: len(names)])}) and the recipe names ({', '.join(names)}): "
                "inputs are passed in the recipe's order"
            )
            return tuple(names), text
    return tuple(names), ""
