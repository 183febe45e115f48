"""Placement in its order: match layers, choose tensors, find their codes, write the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx

from repo_builder.core.precisions import opset_of
from repo_builder.core.recipe import InputQuantizer
from repo_builder.quantize.finders import calibrator_name, float8_input
from repo_builder.quantize.placement.blocked import find_blocked
from repo_builder.quantize.placement.blocked import rewrite as rewrite_blocked
from repo_builder.quantize.placement.choose import Choice, choose
from repo_builder.quantize.placement.codes import Codes
from repo_builder.quantize.placement.dynamic import find_dynamic, rewrite, static
from repo_builder.quantize.placement.float8 import find_float8, without_ranges
from repo_builder.quantize.placement.float8 import rewrite as rewrite_float8
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.placement.layers import find
from repo_builder.quantize.placement.placed import LayerOutcome, Placed, PlacedTensor, Wanted
from repo_builder.quantize.placement.scales import tensor_codes
from repo_builder.quantize.placement.table import Profile
from repo_builder.quantize.placement.write import write
from repo_builder.quantize.prepare import current
from repo_builder.quantize.ranges import Ranges
from repo_builder.quantize.rules import LayerPlan


def wanted(model: onnx.ModelProto, plans: Sequence[LayerPlan], profiles: Sequence[Profile]) -> dict[str, Wanted]:
    """Return which tensors need a range, and by which calibrators, for all targets together.

    The rules of the int8 layers that read a tensor govern it, directly or through glue; where none does, its maker's
    rule. A float reader that will see rounded values wants ``max``: nothing that calibration saw is clipped for it.

    Args:
        model: The fp32 graph, as for ``place``.
        plans: What each layer is to become.
        profiles: The targets.

    Returns:
        Tensor → its calibrators, in graph order.
    """
    index = Index(current(model))
    found: dict[str, tuple[set[InputQuantizer], dict[str, None]]] = {}
    for profile in profiles:
        choice = choose(index, find(index, static(plans), profile), profile, lambda _: True)
        asked = [(tensor, calibrators, names) for tensor, (calibrators, names) in choice.demands.items()]
        for tensor, calibrators, names in (*asked, *_of_float8(index, plans, profile)):
            specs, asking = found.setdefault(tensor, (set(), {}))
            specs.update(calibrators)
            asking.update(dict.fromkeys(names))
    ordered = (*index.inputs, *(name for node in index.nodes for name in node.output))
    return {name: _wanted(*found[name]) for name in dict.fromkeys(ordered) if name in found}


def _of_float8(
    index: Index, plans: Sequence[LayerPlan], profile: Profile
) -> Iterator[tuple[str, tuple[InputQuantizer], tuple[str]]]:
    """Yield what the fp8 layers of a target read, with their rule's calibrator and their name."""
    rules = {item.name: item.coded_rule for item in plans if item.precision == "fp8"}
    for layer, tensors in find_float8(index, plans, profile).reads.items():
        for tensor in tensors:
            yield tensor, (float8_input(rules[layer].input),), (layer,)


def _wanted(specs: set[InputQuantizer], layers: Mapping[str, None]) -> Wanted:
    widest = {spec for spec in specs if spec.calibrator == "max"} or specs
    return Wanted(
        calibrators=tuple(sorted(widest, key=calibrator_name)),
        layers=tuple(layers),
    )


def place(model: onnx.ModelProto, plans: Sequence[LayerPlan], ranges: Ranges, profile: Profile) -> Placed:
    """Return the graph with Q/DQ for a target; deterministic, and ``model`` is not changed.

    Args:
        model: The fp32 graph as ``prepare.prepare`` leaves it. Its inputs, outputs and node names stay; a graph
            before opset 13 is converted to 13.
        plans: What each layer is to become. Layers that are to be int8 or fp8 get Q/DQ, int4 ones DequantizeLinear for
            their weight; others stay as they are, fp32 ones also where the target would make them int8 on its own. The
            graph's opset is raised to the first whose Q/DQ takes what there is: 19 for fp8, 21 for int4.
        ranges: The range of every tensor that ``wanted`` names, and of each such layer's weight. A tensor without one
            was never reached, and carries no Q/DQ.
        profile: The target.

    Raises:
        QuantizeError: A range is not finite, zero at a layer's input or too small for a scale; a layer has no weight
            range; or the graph is too old and cannot be converted. The layer is named.
    """
    model = current(model)
    choice, codes = decide(model, plans, ranges, profile)
    index = choice.index
    dynamic, blocked = find_dynamic(index, plans, profile), find_blocked(index, plans, profile)
    float8 = without_ranges(find_float8(index, plans, profile), ranges.tensors)
    made = write(model, choice, codes, ranges.weights, profile)
    able = frozenset(name for name, why in dynamic.items() if not why)
    if able:
        made = rewrite(made, index, able, ranges.weights, profile)
    if float8.reads:
        made = rewrite_float8(current(made, opset_of(["fp8"])), index, float8, ranges, profile)
    able = frozenset(name for name, why in blocked.items() if not why)
    if able:
        made = rewrite_blocked(current(made, opset_of(["int4"])), index, able, ranges.blocks)
    return Placed(
        model=made,
        profile=profile.name,
        tensors={tensor: _placed(choice, tensor, codes[tensor]) for tensor in choice.tensors},
        layers=tuple(_outcome(item, choice, {**dynamic, **float8.why_not, **blocked}) for item in plans),
    )


def decide(
    model: onnx.ModelProto, plans: Sequence[LayerPlan], ranges: Ranges, profile: Profile
) -> tuple[Choice, dict[str, Codes]]:
    """Return where Q/DQ stands and each tensor's codes: what ``place`` writes, before it is written.

    Args:
        model: As for ``place``, of opset 13 or later.
        plans: What each layer is to become.
        ranges: As for ``place``.
        profile: The target.

    Raises:
        QuantizeError: A range is not finite, zero at a layer's input or too small for a scale.
    """
    index = Index(model)
    choice = choose(index, find(index, static(plans), profile), profile, ranges.tensors.__contains__)
    return choice, tensor_codes(choice, ranges.tensors, profile.activations)


def _placed(choice: Choice, tensor: str, codes: Codes) -> PlacedTensor:
    index = choice.index
    readers = index.readers[tensor]
    through = [place for place in readers if tensor in choice.int8_reads(place)]
    floats = [index.nodes[place].name or index.nodes[place].output[0] for place in readers if place not in through]
    floats += ["(output)"] * (tensor in index.outputs) + ["(subgraph)"] * (tensor in index.inner)
    return PlacedTensor(
        name=tensor,
        scale=float(codes.scale),
        zero_point=codes.zero_point,
        dtype=codes.dtype,
        low=codes.low,
        high=codes.high,
        int8_readers=tuple(index.nodes[place].name or index.nodes[place].output[0] for place in through),
        float_readers=tuple(floats),
        floats_read="rounded" if tensor in choice.made else "original",
    )


def _outcome(plan: LayerPlan, choice: Choice, apart: Mapping[str, str]) -> LayerOutcome:
    """Return a layer's row.

    Args:
        plan: What it is to become.
        choice: What the rest of placement made of it.
        apart: Layer that was written apart from that → why it stays fp32; empty where it does not.
    """
    if plan.name in apart:
        why, asked = apart[plan.name], plan.precision
        return LayerOutcome(name=plan.name, type=plan.type, asked=asked, placed="fp32" if why else asked, reason=why)
    layers = choice.layers
    reason, precision = layers.reasons.get(plan.name, ""), plan.precision
    if precision == "int8" and not reason:
        places = [place for place, item in layers.plans.items() if item.name == plan.name]
        if not all(place in layers.int8 or place in choice.glue for place in places):
            reason = "its inputs or outputs have no range, or its settings have no int8 form"
    placed = "fp32" if reason else precision
    return LayerOutcome(name=plan.name, type=plan.type, asked=plan.precision, placed=placed, reason=reason)
