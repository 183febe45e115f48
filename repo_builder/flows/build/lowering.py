"""An OnnxArtifact's graph for one target: Q/DQ placed, fp16 regions made, checked, and each layer's noise measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from repo_builder.core import loading, onnx_files, progress
from repo_builder.core.artifacts import OnnxArtifact
from repo_builder.core.errors import MissingDependency, RecipeError
from repo_builder.core.graphs import TYPE
from repo_builder.core.portable import make_portable
from repo_builder.core.records import LayerRecord
from repo_builder.core.tensors import Array
from repo_builder.flows.build import forms

if TYPE_CHECKING:
    import onnx

    from repo_builder.quantize import LayerPlan
    from repo_builder.quantize.placement import Placed, Profile


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """The graph for a target.

    Attributes:
        layers: The per-layer table: precisions asked and in the graph.
        layer_precisions: Layer → precision, read back from the graph.
        notes: Sentences for the user, on what stays out of fp16 regions.
    """

    layers: tuple[LayerRecord, ...]
    layer_precisions: dict[str, str]
    notes: tuple[str, ...]


def profile(placement: tuple[str, str]) -> Profile:
    """Return the profile that a target names (``CompileTarget.placement``)."""
    name, saturation = placement
    if name == "onnxruntime-cpu":
        for_cpu: Callable[[str], Profile] = loading.load(
            "repo_builder.quantize.placement.profiles.onnxruntime_cpu:for_cpu"
        )
        return for_cpu(saturation)
    found: Profile = loading.load("repo_builder.quantize.placement:profile")(name)
    return found


def lower(
    exported: OnnxArtifact, placement: tuple[str, str], path: Path, samples: Mapping[str, Array] | None
) -> Lowered:
    """Write the graph for a target.

    Args:
        exported: The artifact.
        placement: What the target says of its profile.
        path: The file.
        samples: Calibration samples, to measure each layer's noise; None where they are not on this machine.

    Raises:
        QuantizeError: A layer cannot take its precision.
        ExportError: The graph is not clean.
        RecipeError: The recipe's rules are not those that the artifact was calibrated for.
    """
    model = onnx_files.load(exported.model)
    precisions = loading.load("repo_builder.export.qdq:layer_precisions")
    if exported.details.as_it_came:
        _write(model, exported, path)
        return Lowered(layers=exported.layers, layer_precisions=precisions(model), notes=())
    ready, plans = forms.planned(model, exported.recipe)
    if [(item.name, item.precision) for item in plans] != [(row.name, row.asked) for row in exported.layers]:
        hint = "build again: rules are part of what is exported and calibrated"
        raise RecipeError("the rules are not those that the artifact was calibrated for", where="quantize", hint=hint)
    ranges = loading.load("repo_builder.quantize.store:read_ranges")(exported.ranges)
    placed: Placed = loading.load("repo_builder.quantize.placement:place")(ready, plans, ranges, profile(placement))
    lowered, notes = _fp16(placed.model, plans)
    _write(lowered, exported, path)
    found = precisions(lowered)
    loading.load("repo_builder.export.qdq:check")(path, strict=placement[0] == "tensorrt")
    layers = _table(exported, ready, lowered, placed, samples)
    for sentence in loading.load("repo_builder.quantize.table:hard_layers")(layers):
        progress.warn(sentence)
    return Lowered(layers=layers, layer_precisions=found, notes=notes)


def _write(model: onnx.ModelProto, exported: OnnxArtifact, path: Path) -> None:
    """Write a graph as more servers take it: types of layers, which rules are done with, would ask for a newer one."""
    for node in model.graph.node:
        kept = [item for item in node.metadata_props if item.key != TYPE]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    make_portable(model, exported.outputs)
    onnx_files.save(model, path)


def _fp16(model: onnx.ModelProto, plans: Sequence[LayerPlan]) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Make fp16 regions; return the graph and a sentence for each node that stays out of one."""
    chosen = frozenset(item.name for item in plans if item.precision == "fp16")
    if not chosen:
        return model, ()
    said: list[str] = []
    made: onnx.ModelProto = loading.load("repo_builder.export.precision:to_fp16_regions")(model, chosen, said.append)
    return made, tuple(said)


def _table(
    exported: OnnxArtifact,
    ready: onnx.ModelProto,
    lowered: onnx.ModelProto,
    placed: Placed,
    samples: Mapping[str, Array] | None,
) -> tuple[LayerRecord, ...]:
    """Return the layers' rows, with signal to noise where there are samples and a runtime for them."""
    chosen = [item.name for item in placed.layers if item.placed != "fp32"]
    ratios: dict[str, float] = {}
    if samples is not None and chosen:
        try:
            measure = loading.load("repo_builder.quantize.noise:signal_to_noise", extra="onnxruntime")
        except MissingDependency as error:
            progress.skipped("measure layers", error.message)
        else:
            with progress.step("measure layers"):
                ratios = measure(ready, lowered, chosen, samples)
    rows: tuple[LayerRecord, ...] = loading.load("repo_builder.quantize.table:placed")(
        exported.layers, placed.layers, ratios
    )
    return rows
