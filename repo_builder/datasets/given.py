"""Samples that a program holds already: arrays, or batches from a loader; kept as the .npz that ``user`` reads.

Kept in a file, they are what every later step sees too: ``compile`` on this machine, and ``perf``, which measures
accuracy on the same held-out samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repo_builder.core import files
from repo_builder.core.errors import DataError
from repo_builder.core.tensors import Array

LABELS = ("y", "labels")
_ORIGIN = "data"


def keep(data: Any, path: Path, *, inputs: Sequence[str]) -> None:  # noqa: ANN401 - arrays of any library
    """Write what ``arrays`` finds as an .npz.

    Raises:
        DataError: It cannot be understood.
        OutputError: It cannot be written.
    """
    found = arrays(data, inputs=inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing_file(path) as stream:
        np.savez(stream, **found)


def arrays(data: Any, *, inputs: Sequence[str]) -> dict[str, Array]:  # noqa: ANN401 - as above
    """Return samples by input name, ``(n, *shape)`` each, with ``y`` where there are labels.

    Args:
        data: A mapping by input name, with ``y`` for labels and ``classes`` for their names; a tuple of the inputs in
            the recipe's order, with labels at the end or without; one array; or an iterable of batches, each of these.
            Arrays are those of numpy, or torch tensors.
        inputs: Names of the model's inputs.

    Raises:
        DataError: It is none of these, holds nothing, or batches differ in what they hold.
    """
    if isinstance(data, Mapping | tuple) or hasattr(data, "shape"):
        return _named(data, inputs)
    if hasattr(data, "__getitem__") and not isinstance(data, list):
        hint = "wrap it in a loader, as torch.utils.data.DataLoader(data, batch_size=64)"
        raise DataError(f"a {type(data).__name__} gives single samples, not batches", where=_ORIGIN, hint=hint)
    if not isinstance(data, Iterable):
        hint = "give arrays (x, y), arrays by input name, or a loader of batches"
        raise DataError(f"a {type(data).__name__} is neither arrays nor a loader", where=_ORIGIN, hint=hint)
    batches = [_named(batch, inputs) for batch in data]
    if not batches:
        raise DataError("the loader gives no batch", where=_ORIGIN)
    return {name: _joined(name, batches) for name in batches[0]}


def _joined(name: str, batches: list[dict[str, Array]]) -> Array:
    if name == "classes":
        return batches[0][name]
    odd = next((place for place, item in enumerate(batches) if item.keys() != batches[0].keys()), None)
    if odd is None:
        shapes = [item[name].shape[1:] for item in batches]
        odd = next((place for place, shape in enumerate(shapes) if shape != shapes[0]), None)
    if odd is not None:
        hint = "give batches of equal arrays, but for the number of samples"
        raise DataError(f"batch {odd} differs from the first in '{name}'", where=_ORIGIN, hint=hint)
    return np.concatenate([item[name] for item in batches])


def _named(batch: Any, inputs: Sequence[str]) -> dict[str, Array]:  # noqa: ANN401 - as above
    """Return the arrays of a batch, or of all samples, by name."""
    free = [name for name in LABELS if name not in inputs]
    if not isinstance(batch, Mapping):
        parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        if len(parts) not in (len(inputs), len(inputs) + 1) or (len(parts) > len(inputs) and not free):
            said = f"{len(parts)} arrays are neither the inputs ({', '.join(inputs)}) nor these and labels"
            raise DataError(said, where=_ORIGIN, hint="give arrays by name where there are more")
        batch = dict(zip((*inputs, *free[:1]), parts, strict=False))
    missing = [name for name in inputs if name not in batch]
    if missing:
        hint = f"it has: {', '.join(map(str, batch)) or 'nothing'}"
        raise DataError(f"there is nothing for the input '{missing[0]}'", where=_ORIGIN, hint=hint)
    kept = [*inputs, *(name for name in (*free, "classes") if name in batch and name not in inputs)]
    return {name: _array(name, batch[name]) for name in kept if batch[name] is not None}


def _array(name: str, value: Any) -> Array:  # noqa: ANN401 - as above
    try:
        found: Array = np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
        if found.dtype.kind == "O" and all(isinstance(item, str) for item in found.flat):
            found = found.astype(str)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"'{name}' is no array ({error})", where=_ORIGIN, hint="as numpy has it") from error
    if found.dtype.kind == "O":
        raise DataError(f"'{name}' holds Python objects", where=_ORIGIN, hint="give one array of numbers")
    return found if found.ndim else found[None]
