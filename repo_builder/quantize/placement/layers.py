"""Which nodes compute which layer, and which of them can be int8 on a target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from repo_builder.core.graphs import LAYER_OPS, layer_of, own
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.placement.table import Profile
from repo_builder.quantize.rules import LayerPlan

NO_NODE = "no node of the graph computes it"
NO_RANGE = "nothing reached it in calibration"


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What the plans mean for the nodes.

    Attributes:
        plans: Place of a node → the plan of the layer that it computes.
        int8: Places of nodes with a weight that are to be int8 and can be.
        asked: Places of nodes without a weight that a rule wants int8 and that have an int8 form.
        reasons: Layer → why it is not int8 though it was to be.
    """

    plans: Mapping[int, LayerPlan]
    int8: frozenset[int]
    asked: frozenset[int]
    reasons: Mapping[str, str]


def find(index: Index, plans: Sequence[LayerPlan], profile: Profile) -> Layers:
    """Match plans with nodes.

    Args:
        index: The graph.
        plans: What each layer is to become.
        profile: The target.
    """
    by_name: dict[str, list[int]] = defaultdict(list)
    for place, node in enumerate(index.nodes):
        name = layer_of(node) if own(node) else None
        if name is not None:
            by_name[name].append(place)
    found: dict[int, LayerPlan] = {}
    int8: set[int] = set()
    asked: set[int] = set()
    reasons: dict[str, str] = {}
    for item in plans:
        for place in by_name[item.name]:
            found[place] = item
        if item.precision != "int8":
            continue
        why = NO_NODE if not by_name[item.name] else ""
        for place in by_name[item.name]:
            node = index.nodes[place]
            product = not item.weighted and is_product(index, node) and node.op_type in profile.glue
            weighted = node.op_type in LAYER_OPS and not product
            why_not = why_not_weighted(index, node, profile) if weighted else _weightless(index, node, profile)
            why = why or why_not
            if not why_not:
                (int8 if weighted else asked).add(place)
        if why:
            reasons[item.name] = why
    return Layers(plans=found, int8=frozenset(int8), asked=frozenset(asked), reasons=reasons)


def without(layers: Layers, places: Collection[int]) -> Layers:
    """Return the same without some int8 nodes, whose input no calibration sample reached."""
    lost = {layers.plans[place].name: NO_RANGE for place in places}
    return replace(layers, int8=layers.int8 - set(places), reasons={**layers.reasons, **lost})


def is_product(index: Index, node: onnx.NodeProto) -> bool:
    """Whether a node multiplies two activations, as attention does."""
    return node.op_type == "MatMul" and len(node.input) > 1 and all(name in index.floats for name in node.input)


def why_not_weighted(index: Index, node: onnx.NodeProto, profile: Profile) -> str:
    """Return why a node with a weight cannot be int8, an empty text where it can."""
    form = profile.layers.get(node.op_type)
    if form is None:
        return f"{profile.name} has no int8 {node.op_type}"
    if form.why_not:
        return form.why_not
    weight = index.value(node.input[1])
    if weight is None:
        given = node.input[1] in index.initializers
        return "its weight is an input of the graph" if given else "its weight is computed while the model runs"
    if weight.dtype != np.float32:
        return f"its weight is {weight.dtype}; int8 starts from float32"
    if weight.size == 0 or (node.op_type in ("MatMul", "Gemm") and weight.ndim != 2):
        return f"its weight has the shape {list(weight.shape)}"
    if node.input[0] not in index.floats:
        return "its input is constant or no float32 tensor"
    if node.op_type not in ("Gemm", "MatMul") and profile.stored_codes and _bias_is_computed(index, node):
        return "its bias is computed while the model runs"
    return ""


def _bias_is_computed(index: Index, node: onnx.NodeProto) -> bool:
    return len(node.input) > 2 and bool(node.input[2]) and index.value(node.input[2]) is None


def _weightless(index: Index, node: onnx.NodeProto, profile: Profile) -> str:
    """Return why a node without a weight cannot be int8, an empty text where it can."""
    if node.op_type not in profile.glue:
        return f"{profile.name} has no int8 {node.op_type}"
    return "" if any(name in index.floats for name in node.input) else "its input is constant or no float32 tensor"
