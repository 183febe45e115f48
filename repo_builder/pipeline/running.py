"""Parts run in this process, on any number of samples: ONNX graphs by ONNX Runtime, Python steps by their own files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from repo_builder.core.errors import DataError
from repo_builder.core.tensors import Array, DType, TensorSpec
from repo_builder.pipeline.form import told
from repo_builder.pipeline.parts import Part

# (n, *shape) by name of the chain; a list of (1, *shape) where samples have different shapes
Values = Mapping[str, "Array | list[Array]"]
Feed = dict[str, Array]
_BLOCK = 64  # samples that a graph is given at a time
_HELD = 256  # samples whose tensors are held, all of the chain


@dataclass(frozen=True, kw_only=True)
class Runnable:
    """A part that can be run.

    Attributes:
        part: The part.
        run: Whole tensors by name → whole tensors by name.
        alone: Whether it takes samples of one request only where they come out alike.
    """

    part: Part
    run: Callable[[Feed], Mapping[str, Array]]
    alone: bool = False


def run(parts: Sequence[Runnable], samples: Values, keep: Sequence[str]) -> dict[str, Array | list[Array]]:
    """Return some tensors of the chain; what lies between is held for a block of samples at a time.

    Args:
        parts: In their order.
        samples: What the first of them take.
        keep: Names of the tensors.

    Raises:
        DataError: A sample is refused by a step; it is named.
    """
    count = len(next(iter(samples.values())))
    # what such a step makes of a text depends on the others that it is padded with: all of them, as in one request
    padding = any(
        item.part.python and not item.alone and any(-1 in spec.shape for spec in item.part.gives) for item in parts
    )
    size = count if padding else _HELD
    blocks: list[dict[str, Array | list[Array]]] = []
    for start in range(0, count, size):
        found: dict[str, Array | list[Array]] = {name: value[start : start + size] for name, value in samples.items()}
        for item in parts:
            found |= _run(item, {spec.name: found[spec.name] for spec in item.part.takes}, start)
        blocks.append({name: found[name] for name in keep})
    return {name: _concatenated([block[name] for block in blocks]) for name in keep}


def _concatenated(blocks: list[Array | list[Array]]) -> Array | list[Array]:
    """Return blocks as one array, or as a list of samples where their shapes differ."""
    shapes = {item.shape[1:] for block in blocks for item in (block if isinstance(block, list) else [block])}
    if len(shapes) == 1:
        whole: Array = np.concatenate([np.concatenate(item) if isinstance(item, list) else item for item in blocks])
        return whole
    rows: list[Array] = []
    for block in blocks:
        rows += block if isinstance(block, list) else [block[place : place + 1] for place in range(len(block))]
    return rows


def stacked(values: Values, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Return tensors as one array each.

    Raises:
        DataError: Samples of one have different shapes.
    """
    ready = {}
    for spec in specs:
        value = values[spec.name]
        if isinstance(value, list):
            shapes = sorted({item.shape[1:] for item in value})
            shown = " and ".join(told((spec.dtype, shape)) for shape in shapes[:2])
            hint = "give the steps before the network a fixed size: a height and a width, or a length"
            raise DataError(f"samples become {shown} in front of the network", where=f"'{spec.name}'", hint=hint)
        ready[spec.name] = value
    return ready


def _run(item: Runnable, taken: Values, first: int) -> dict[str, Array | list[Array]]:
    count = len(next(iter(taken.values())))
    together = not item.alone and not any(isinstance(value, list) for value in taken.values())
    # what a Python step makes of a request may depend on all of its texts, as the length that they are padded to
    size = (count if item.part.python else _BLOCK) if together else 1
    rows: list[Mapping[str, Array]] = []
    for start in range(0, count, size):
        feed = {name: _rows(value, start, size) for name, value in taken.items()}
        try:
            rows.append(item.run(feed))
        except DataError as error:
            named = f"sample {first + start}: {error.message}" if size == 1 else error.message
            raise DataError(named, where=error.where, hint=error.hint) from None
    return {spec.name: _joined([row[spec.name] for row in rows], spec, item.part) for spec in item.part.gives}


def _rows(value: Array | list[Array], start: int, size: int) -> Array:
    return value[start] if isinstance(value, list) else value[start : start + size]


def _joined(rows: list[Array], spec: TensorSpec, part: Part) -> Array | list[Array]:
    """Return rows as one array, or as they are where their shapes differ; refuse what is not what was declared."""
    for row in rows:
        if not (spec.accepts(row) or (spec.dtype is DType.STRING and spec.fits(row.shape[1:]))):
            kind = DType.of_numpy(row.dtype).value
            raise DataError(f"gave {kind}{list(row.shape[1:])} for {spec}", where=" and ".join(map(str, part.links)))
    return np.concatenate(rows) if len({row.shape[1:] for row in rows}) == 1 else rows
