"""Dimensions that a graph declares as varying and a constant in it fixes: named before a server meets another size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from repo_builder.core import loading, signatures
from repo_builder.core.errors import MissingDependency, ModelError
from repo_builder.core.recipe import Recipe
from repo_builder.core.signatures import OnnxSignature
from repo_builder.core.tensors import Array, TensorSpec

if TYPE_CHECKING:
    from repo_builder.core.sessions import Session

_Place = tuple[str, int]  # an input and one of its axes


@dataclass(frozen=True, kw_only=True)
class FalseAxis:
    """A dimension that does not vary though it is declared so.

    Attributes:
        tensor: The input.
        axis: Of the whole tensor.
        size: The only size that was seen to work.
        tried: Sizes that do not.
        reason: What ONNX Runtime says of the first of them.
    """

    tensor: str
    axis: int
    size: int
    tried: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        """Return a sentence, with what to do."""
        sizes = " and ".join(map(str, self.tried))
        return (
            f"the input '{self.tensor}' declares its dimension {self.axis} as varying, and the graph runs at "
            f"{self.size} but not at {sizes} ({self.reason}): give it as {self.size} in [[model.inputs]], or mend the "
            "model"
        )


def sizes(recipe: Recipe) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes, batch left out, that a recipe's profiles name: those that kernels are tuned for first."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for key in ("opt", "min", "max"):
        for profile in recipe.compile.tensorrt.profiles:
            for name, bounds in profile.shapes.items():
                if key in bounds:
                    found.setdefault(name, []).append(tuple(bounds[key]))
    return found


def false_axes(path: Path, inputs: Sequence[TensorSpec], samples: Mapping[str, Array]) -> tuple[FalseAxis, ...]:
    """Return the varying dimensions, the batch apart, at which a graph runs in one size alone; none if it cannot tell.

    Sizes that share a name vary together, or else those that are equal: exporters name each dimension apart. One below,
    half, twice and 32 more are tried, and any one that runs will do: strides and tables of positions rule out some
    sizes of a dimension that does vary.

    Args:
        path: The ONNX file.
        inputs: As the recipe gives them: a dimension that it fixes is not asked for.
        samples: Samples by input name, first dimension the samples.
    """
    signature = signatures.read(path)
    groups = _groups(signature, inputs)
    if not groups:
        return ()
    try:
        with loading.needs("onnxruntime", what="trying other sizes"):
            from repo_builder.core.sessions import Session
        session = Session(path)
        feeds = {item.name: np.asarray(samples[item.name])[:1] for item in signature.inputs}
        session.run(feeds)
    except (MissingDependency, ModelError, KeyError):
        return ()  # what cannot be run as it is tells nothing about other sizes
    everywhere = [place for group in groups for place in group]
    found = []
    for group in groups:
        size = feeds[group[0][0]].shape[group[0][1]]
        equal = [(name, axis) for name, axis in everywhere if feeds[name].shape[axis] == size]
        found.append(_tried(session, feeds, [group, equal]))
    return tuple(item for item in found if item is not None)


def _groups(signature: OnnxSignature, inputs: Sequence[TensorSpec]) -> list[list[_Place]]:
    """Return the varying dimensions as (input, axis), those of one name together."""
    asked = {spec.name: spec for spec in inputs}
    named: dict[str, list[_Place]] = {}
    for item in signature.inputs:
        spec, shape = asked.get(item.name), item.shape or ()
        if spec is None or spec.batch_axis != 0 or len(spec.shape) != len(shape) - 1:
            continue
        for axis, (size, wanted) in enumerate(zip(shape[1:], spec.shape, strict=True), 1):
            if size == wanted == -1:
                symbol = item.symbols[axis] if item.symbols else ""
                named.setdefault(symbol or f"{item.name} {axis}", []).append((item.name, axis))
    return list(named.values())


def _tried(session: Session, feeds: Mapping[str, Array], groups: Sequence[Sequence[_Place]]) -> FalseAxis | None:
    """Return the finding of dimensions that vary together in one of several ways, or None where another size runs."""
    (name, axis), reason = groups[0][0], ""
    size = feeds[name].shape[axis]
    tried = tuple(_others(size))
    for other in tried:
        for group in groups:
            said = _refusal(session, _resized(feeds, group, other))
            if said is None:
                return None
            reason = reason or said
    return FalseAxis(tensor=name, axis=axis, size=size, tried=tried, reason=reason) if tried else None


def _refusal(session: Session, feeds: Mapping[str, Array]) -> str | None:
    """Return why a graph does not run, None where it does."""
    try:
        session.run(feeds)
    except ModelError as error:
        return error.message
    return None


def _resized(feeds: Mapping[str, Array], places: Sequence[_Place], size: int) -> dict[str, Array]:
    """Return inputs with some dimensions at another size; values are repeated where there are too few."""
    changed = dict(feeds)
    for name, axis in places:
        taken = np.resize(np.arange(feeds[name].shape[axis]), size)
        changed[name] = np.take(changed[name], taken, axis=axis)
    return changed


def _others(size: int) -> Iterator[int]:
    seen = {0, size}
    for other in (size - 1, size // 2, 2 * size, size + 32):
        if other not in seen:
            seen.add(other)
            yield other
