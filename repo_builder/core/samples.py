"""Samples and whole tensors: which axis of a tensor counts samples, and how many of them a model takes at a time.

Data and scores are samples first, ``(n, *shape)``. A model may want that as it is, with the samples on another axis (a
state ``(2, n, 128)``), so many of them and no other number, or one sample that is the whole tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from repo_builder.core.errors import DataError, ModelError
from repo_builder.core.tensors import Array, TensorSpec

NONE = -1  # as an axis: none counts samples
MOST = 64
Shapes = Mapping[str, Sequence[int] | None]


def resolve(specs: Iterable[TensorSpec], shapes: Shapes) -> tuple[TensorSpec, ...]:
    """Return the specs with the axis that counts samples in a model's tensors: none where a spec is a whole tensor.

    Args:
        specs: As a recipe gives them, the batch left out.
        shapes: Tensor → whole shape in the model, -1 for what varies; None or left out where it is not known.

    Raises:
        ModelError: A tensor has no such axis, or neither the spec's dimensions nor one more.
    """
    found = []
    for spec in specs:
        shape = shapes.get(spec.name)
        if shape is None:
            found.append(spec)
            continue
        axis = NONE if len(shape) == len(spec.shape) else spec.batch_axis
        right = len(spec.shape) + (axis != NONE)
        if len(shape) != right or not NONE <= axis < max(1, right):
            message = (
                f"is {list(shape)} in the model; the recipe says {spec}, batch left out, on axis {spec.batch_axis}"
            )
            raise ModelError(message, where=f"'{spec.name}'", hint="change its shape or its batch_axis in the recipe")
        found.append(dataclasses.replace(spec, batch_axis=axis))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Batches:
    """How samples become a model's tensors, and its outputs samples again.

    Attributes:
        inputs: Resolved specs.
        outputs: Resolved specs.
        size: Samples of a run, at most.
        fixed: Whether a run takes exactly so many.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    size: int
    fixed: bool = False

    @classmethod
    def of(
        cls, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec], shapes: Shapes, *, most: int = MOST
    ) -> Batches:
        """Find out how a model takes samples.

        Args:
            inputs: As a recipe gives them.
            outputs: Likewise.
            shapes: As for ``resolve``.
            most: Samples of a run where the model takes any number.

        Raises:
            ModelError: Specs do not fit the model, two inputs are fixed to different numbers of samples, or an output
                counts no samples while inputs do, and the recipe does not say so.
        """
        given = tuple(outputs)
        ins, outs = resolve(inputs, shapes), resolve(given, shapes)
        sizes = {spec.name: _at(spec, shapes) for spec in ins if spec.batch_axis != NONE}
        fixed = {size for size in sizes.values() if size > 0}
        if len(fixed) > 1:
            shown = ", ".join(f"{name} {size}" for name, size in sizes.items() if size > 0)
            raise ModelError(f"the inputs are fixed to different batches ({shown})", where="model.inputs")
        if sizes and fixed != {1}:
            _refuse_lost_axes(given, outs, next(iter(sizes)), shapes)
        if fixed:
            return cls(inputs=ins, outputs=outs, size=fixed.pop(), fixed=True)
        alone = any(spec.batch_axis == NONE for spec in (*ins, *outs))
        return cls(inputs=ins, outputs=outs, size=1 if alone else most)

    @property
    def obstacle(self) -> str:
        """Why a server cannot put requests together along the first axis of every tensor; empty where it can."""
        if self.fixed:
            return f"the model is fixed to a batch of {self.size}"
        for spec in (*self.inputs, *self.outputs):
            if spec.batch_axis == NONE:
                return f"no axis of '{spec.name}' counts samples"
            if spec.batch_axis:
                return f"axis {spec.batch_axis} of '{spec.name}' counts samples, not the first"
        return ""

    def feeds(self, samples: Mapping[str, Array]) -> Iterator[tuple[int, dict[str, Array]]]:
        """Yield runs of the model: how many samples are in it, and its inputs; a last one that is too short is filled.

        Args:
            samples: ``(n, *shape)`` by input name.

        Raises:
            DataError: An input that counts no samples differs between samples of one run.
        """
        total = len(next(iter(samples.values())))
        for start in range(0, total, self.size):
            count = min(self.size, total - start)
            rows = np.arange(start, start + (self.size if self.fixed else count)).clip(max=total - 1)
            yield count, {spec.name: self._whole(spec, samples[spec.name][rows]) for spec in self.inputs}

    def rows(self, outputs: Mapping[str, Array], count: int, taken: int) -> dict[str, Array]:
        """Return a run's outputs by sample, ``(count, *shape)``.

        Args:
            outputs: Whole tensors by name.
            count: Samples that were in the run.
            taken: Samples that the run took, with those that filled it.

        Raises:
            ModelError: An output does not hold one row a sample.
        """
        found = {}
        for spec in self.outputs:
            value = outputs[spec.name]
            if spec.batch_axis == NONE:
                found[spec.name] = np.repeat(value[None], count, axis=0)
                continue
            length = value.shape[spec.batch_axis] if value.ndim > spec.batch_axis else None
            if length != taken:
                message = (
                    f"has the shape {list(value.shape)} for {taken} samples: axis {spec.batch_axis} does not count them"
                )
                hint = "give its batch_axis in the recipe; -1 where none counts samples, which are then run one by one"
                raise ModelError(message, where=f"output '{spec.name}'", hint=hint)
            found[spec.name] = np.moveaxis(value, spec.batch_axis, 0)[:count]
        return found

    def run(
        self, model: Callable[[dict[str, Array]], Mapping[str, Array]], samples: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Run a model on samples and return its outputs, ``(n, *shape)`` by name.

        Args:
            model: Whole tensors by name → whole tensors by name.
            samples: ``(n, *shape)`` by input name.

        Raises:
            DataError: As ``feeds``.
            ModelError: As ``rows``, or the shape of an output varies between runs.
        """
        parts = []
        for count, feed in self.feeds(samples):
            parts.append(self.rows(model(feed), count, self.size if self.fixed else count))
        return {spec.name: _join(spec.name, [part[spec.name] for part in parts]) for spec in self.outputs}

    def requests(self, samples: Mapping[str, Array]) -> dict[str, Array]:
        """Return whole tensors, one a run: ``(runs, *whole shape)`` by input name; for a size of 1 or a fixed one."""
        feeds = [feed for _, feed in self.feeds(samples)]
        return {spec.name: np.stack([feed[spec.name] for feed in feeds]) for spec in self.inputs}

    def answers(self, outputs: Mapping[str, Array], total: int) -> dict[str, Array]:
        """Return what the runs of ``requests`` gave, by sample.

        Args:
            outputs: ``(runs, *whole shape)`` by name.
            total: Number of samples.
        """
        parts = []
        for place, start in enumerate(range(0, total, self.size)):
            count = min(self.size, total - start)
            taken = self.size if self.fixed else count
            parts.append(self.rows({name: value[place] for name, value in outputs.items()}, count, taken))
        return {spec.name: _join(spec.name, [part[spec.name] for part in parts]) for spec in self.outputs}

    def _whole(self, spec: TensorSpec, rows: Array) -> Array:
        if spec.batch_axis != NONE:
            return np.ascontiguousarray(np.moveaxis(rows, 0, spec.batch_axis))
        if len(rows) > 1 and not all(np.array_equal(rows[0], row) for row in rows[1:]):
            message = f"differs between samples that the model takes together ({len(rows)} at a time)"
            raise DataError(message, where=f"'{spec.name}'", hint="put samples of the same value next to each other")
        whole: Array = np.asarray(rows[0])  # of a scalar numpy gives no array
        return whole


def _refuse_lost_axes(given: Iterable[TensorSpec], found: Iterable[TensorSpec], counted: str, shapes: Shapes) -> None:
    for said, spec in zip(given, found, strict=True):
        if said.batch_axis != NONE and spec.batch_axis == NONE:
            message = (
                f"is {list(shapes[spec.name] or ())} in the model: no axis counts samples, while '{counted}' has one"
            )
            hint = "a recipe that says batch_axis = -1 for it serves one sample a request"
            raise ModelError(message, where=f"output '{spec.name}'", hint=hint)


def _at(spec: TensorSpec, shapes: Shapes) -> int:
    """Return the size of the axis that counts samples; -1 where it varies."""
    shape = shapes.get(spec.name)
    return -1 if shape is None else shape[spec.batch_axis]


def _join(name: str, parts: list[Array]) -> Array:
    shapes = {part.shape[1:] for part in parts}
    if len(shapes) > 1:
        shown = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
        raise ModelError(f"its shape varies between samples ({shown})", where=f"output '{name}'")
    joined: Array = np.concatenate(parts)
    return joined
