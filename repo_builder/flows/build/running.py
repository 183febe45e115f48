"""Running a model's file on samples, however it takes them; and whether requests of it may be put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from repo_builder.compile import Runner
from repo_builder.core import batchable, signatures
from repo_builder.core.errors import ModelError
from repo_builder.core.samples import MOST, Batches
from repo_builder.core.tensors import Array, TensorSpec

__all__ = ["MOST", "Taking", "batches_of", "run", "taking", "whole"]


@dataclass(frozen=True, kw_only=True)
class Taking:
    """How a model takes samples.

    Attributes:
        batches: How samples become its tensors.
        alone: Why a request is one run, and nothing is put together with it; empty where it may be.
        reason: Why it may, or may not.
    """

    batches: Batches
    alone: str
    reason: str


def taking(
    path: Path, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec], samples: Mapping[str, Array]
) -> Taking:
    """Find out how an ONNX file takes samples: from its shapes, and by running some together and alone.

    Args:
        path: The file.
        inputs: As the recipe gives them.
        outputs: Likewise.
        samples: Samples by input name, ``(n, *shape)``.

    Raises:
        ModelError: The recipe's tensors are not the file's.
    """
    found = batches_of(path, inputs, outputs)
    if found.obstacle:
        return Taking(batches=found, alone=found.obstacle, reason=found.obstacle)
    verdict = batchable.batches(path, samples)
    if verdict.batches:
        return Taking(batches=found, alone="", reason=verdict.reason)
    return Taking(batches=replace(found, size=1), alone=verdict.reason, reason=verdict.reason)


def batches_of(
    path: Path, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec], *, alone: bool = False
) -> Batches:
    """Return how an ONNX file takes samples, from its shapes.

    Args:
        path: The file.
        inputs: As a recipe or an artifact gives them.
        outputs: Likewise.
        alone: Whether samples must not be put together.

    Raises:
        ModelError: These are not the file's tensors.
    """
    signature = signatures.read(path)
    ins, outs = tuple(inputs), tuple(outputs)
    for side, given, known in (("inputs", ins, signature.inputs), ("outputs", outs, signature.outputs)):
        names = [item.name for item in known]
        missing = next((spec.name for spec in given if spec.name not in names), None)
        if missing is not None:
            message = f"the model has no such tensor '{missing}'; it has {', '.join(names)}"
            raise ModelError(message, where=f"model.{side}")
    shapes = {item.name: item.shape for item in signature.tensors}
    found = Batches.of(ins, outs, shapes)
    return replace(found, size=1) if alone and not found.fixed else found


def run(model: Runner, batches: Batches, samples: Mapping[str, Array]) -> dict[str, Array]:
    """Return a model's outputs on samples, ``(n, *shape)`` by name, those that the recipe names.

    Raises:
        ModelError: An output does not hold one row a sample.
    """
    names = tuple(spec.name for spec in batches.outputs)
    if batches.obstacle or batches.size == 1:
        return batches.run(lambda feed: model.whole(feed, names), samples)
    count = len(next(iter(samples.values())))
    found = model({spec.name: samples[spec.name] for spec in batches.inputs}, names)
    return batches.rows(found, count, count)


def whole(batches: Batches, samples: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return samples as calibration takes them: as they are, or one whole tensor a run where a model asks for that."""
    plain = all(spec.batch_axis == 0 for spec in batches.inputs) and (batches.fixed or batches.size > 1)
    alone = batches if batches.fixed else replace(batches, size=1)
    return samples if plain else alone.requests(samples)
