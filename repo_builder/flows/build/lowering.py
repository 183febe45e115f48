"""An OnnxArtifact's graph for one target: Q/DQ placed, fp16 regions made, checked, and each layer's noise measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from repo_builder.core import loading, onnx_files, progress
from repo_builder.core.artifacts import OnnxArtifact
from repo_builder.core.environment import Saturation
from repo_builder.core.errors import CompileError, MissingDependency, RecipeError
from repo_builder.core.graphs import TYPE
from repo_builder.core.portable import make_portable
from repo_builder.core.recipe import Precision, Recipe
from repo_builder.core.records import LayerRecord
from repo_builder.core.tensors import Array
from repo_builder.export import qdq
from repo_builder.export.precision import NORMALIZING, to_fp16_regions
from repo_builder.flows.build import forms
from repo_builder.quantize import LayerPlan, leaving, placement, store, table
from repo_builder.quantize.placement import Placed, Profile
from repo_builder.quantize.placement.profiles import onnxruntime_cpu
from repo_builder.quantize.placement.weights import LARGEST
from repo_builder.quantize.placement.widen import fitted
from repo_builder.quantize.ranges import Ranges


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """The graph for a target.

    Attributes:
        layers: The per-layer table: precisions asked and in the graph.
        layer_precisions: Layer → precision, read back from the graph.
        notes: Sentences for the user, on what stays out of fp16 regions.
        rounding: Why weights do not have the codes that adaptive rounding chose; empty where they have.
    """

    layers: tuple[LayerRecord, ...]
    layer_precisions: Mapping[str, str]
    notes: tuple[str, ...]
    rounding: str = ""


def profile(target: tuple[str, Saturation]) -> Profile:
    """Return the profile that a target names (``CompileTarget.placement``)."""
    name, saturation = target
    if name == "onnxruntime-cpu":
        return onnxruntime_cpu.for_cpu(saturation)
    return placement.profile(name)


def refuse(recipe: Recipe, target: tuple[str, Saturation]) -> None:
    """Refuse, before any work, what a target has no form of.

    Raises:
        CompileError: Rules ask for int4 weights, which it does not take.
    """
    why = profile(target).why_no_blocks
    for place, rule in enumerate(recipe.quantize.layers):
        if rule.precision == "int4" and why:
            hint = 'give the layers another precision, or build for --target onnxruntime with accelerator = "none"'
            raise CompileError(why, where=f"quantize.layers[{place}].precision", hint=hint)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What placement works on.

    Attributes:
        model: The fp32 graph, made ready.
        plans: What the rules make of its layers.
        ranges: What calibration found.
        profile: The target's.
        follow: Operators that follow their input into fp16 beside those that always do.
    """

    model: onnx.ModelProto
    plans: tuple[LayerPlan, ...]
    ranges: Ranges
    profile: Profile
    follow: frozenset[str] = frozenset()

    @classmethod
    def of(cls, exported: OnnxArtifact, target: tuple[str, Saturation]) -> Ready:
        """Read an artifact that was calibrated.

        Raises:
            RecipeError: The recipe's rules are not those that the artifact was calibrated for.
        """
        model, plans = forms.planned(onnx_files.load(exported.to_place), exported.recipe)
        if [(item.name, item.precision) for item in plans] != [(row.name, row.asked) for row in exported.layers]:
            hint = "build again: rules are part of what is exported and calibrated"
            message = "the rules are not those that the artifact was calibrated for"
            raise RecipeError(message, where="quantize", hint=hint)
        ranges = store.read_ranges(exported.ranges)
        wide = target[0] == "tensorrt" and exported.recipe.compile.tensorrt.fp16_regions == "wide"
        follow = NORMALIZING if wide else frozenset[str]()
        return cls(model=model, plans=plans, ranges=ranges, profile=profile(target), follow=follow)

    def unrepaired(self) -> Ready:
        """Return it without the codes and shifts that repairs found."""
        return replace(self, ranges=self.ranges.unrepaired())

    def write(
        self, exported: OnnxArtifact, path: Path, left: Mapping[str, str], instead: Precision = "fp32"
    ) -> tuple[onnx.ModelProto, Placed, tuple[str, ...]]:
        """Write the graph, some int8 layers left in floating point; return it, its placement and what fp16 leaves out.

        Args:
            exported: The artifact.
            path: The file.
            left: Layer → why it is left in floating point.
            instead: What these layers are instead, ``fp32`` or ``fp16``.
        """
        placed = leaving.place_without(self.model, self.plans, self.ranges, self.profile, left, instead)
        lowered, notes = fp16(placed.model, leaving.without(self.plans, left, instead), self.follow)
        # what is written alone: a layer's noise is measured on tensors of the shapes that the fp32 graph has
        _write(fitted(lowered, self.profile), exported, path)
        return lowered, placed, notes


def lower(
    exported: OnnxArtifact,
    target: tuple[str, Saturation],
    path: Path,
    samples: Mapping[str, Array] | None,
    left: Mapping[str, str] | None = None,
    instead: Precision = "fp32",
    *,
    unrepaired: bool = False,
) -> Lowered:
    """Write the graph for a target.

    Args:
        exported: The artifact.
        target: What the target says of its profile (``CompileTarget.placement``).
        path: The file.
        samples: Calibration samples, to measure each layer's noise; None where they are not on this machine.
        left: Layer → why it is left in floating point though it was to be int8.
        instead: What these layers are instead, ``fp32`` or ``fp16``.
        unrepaired: Whether the codes and shifts that repairs found are left out.

    Raises:
        QuantizeError: A layer cannot take its precision.
        ExportError: The graph is not clean.
        RecipeError: The recipe's rules are not those that the artifact was calibrated for.
    """
    if exported.details.as_it_came:
        model = onnx_files.load(exported.model)
        _write(model, exported, path)
        return Lowered(layers=exported.layers, layer_precisions=qdq.layer_precisions(model), notes=())
    ready = Ready.of(exported, target)
    ready = ready.unrepaired() if unrepaired else ready
    lowered, placed, notes = ready.write(exported, path, left or {}, instead)
    found = qdq.layer_precisions(lowered)
    qdq.check(path, strict=target[0] == "tensorrt")
    layers = _table(exported, ready.model, lowered, placed, samples)
    for sentence in table.hard_layers(layers):
        progress.warn(sentence)
    chosen = any(item.codes is not None for item in ready.ranges.weights.values())
    fewer = ready.profile.weight_steps < LARGEST
    rounding = f"weights are rounded to the nearest of {2 * ready.profile.weight_steps + 1} codes that this CPU takes"
    return Lowered(
        layers=layers,
        layer_precisions=found,
        notes=notes,
        rounding=f"{rounding}: adaptive rounding chose among {2 * LARGEST + 1}" if chosen and fewer else "",
    )


def left_out(exported: OnnxArtifact, lowered: Lowered) -> tuple[str, ...]:
    """Return the int8 layers of a placed graph that may be left in floating point: no rule calls them by full name."""
    _, plans = forms.planned(onnx_files.load(exported.to_place), exported.recipe)
    int8 = {row.name for row in lowered.layers if row.precision == "int8"}
    return tuple(item.name for item in plans if item.name in int8 and not leaving.called(item))


def _write(model: onnx.ModelProto, exported: OnnxArtifact, path: Path) -> None:
    """Write a graph as more servers take it: types of layers, which rules are done with, would ask for a newer one."""
    for node in model.graph.node:
        kept = [item for item in node.metadata_props if item.key != TYPE]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    make_portable(model, exported.outputs)
    onnx_files.save(model, path)


def fp16(
    model: onnx.ModelProto, plans: Sequence[LayerPlan], follow: frozenset[str] = frozenset()
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Make fp16 regions; return the graph and a sentence for each node that stays out of one."""
    chosen = frozenset(item.name for item in plans if item.precision == "fp16")
    if not chosen:
        return model, ()
    said: list[str] = []
    return to_fp16_regions(model, chosen, said.append, follow), tuple(said)


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
            with loading.needs("onnxruntime", what="measuring layers"):
                from repo_builder.quantize import noise
        except MissingDependency as error:
            progress.skipped("measure layers", error.message)
        else:
            with progress.step("measure layers"):
                ratios = noise.signal_to_noise(ready, lowered, chosen, samples)
    return table.placed(exported.layers, placed.layers, ratios)
