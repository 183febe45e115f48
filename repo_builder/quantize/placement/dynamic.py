"""Linear layers whose input range is found anew in every run, as ONNX Runtime's quantize_dynamic writes them.

    codes, step, zero = DynamicQuantizeLinear(x)
    y = Cast(MatMulInteger(codes, weight, zero)) · (step · weight scale) + bias

They are float to the rest of placement: they read float values and make float values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from repo_builder.core.errors import QuantizeError
from repo_builder.core.graphs import attribute, layer_of, with_nodes
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.placement.layers import NO_NODE, why_not_weighted
from repo_builder.quantize.placement.table import Profile
from repo_builder.quantize.placement.weights import Weights, weights_of
from repo_builder.quantize.placement.writer import Writer
from repo_builder.quantize.ranges import WeightRange
from repo_builder.quantize.rules import LayerPlan

_LINEAR = frozenset({"MatMul", "Gemm"})


def is_dynamic(plan: LayerPlan) -> bool:
    """Whether a layer is to be int8 with a range found in every run."""
    return plan.precision == "int8" and plan.int8_rule.input.calibrator == "dynamic"


def static(plans: Sequence[LayerPlan]) -> tuple[LayerPlan, ...]:
    """Return the plans as the rest of placement sees them: such layers are float, and so are those in fp8 and int4."""
    apart = (item.precision in ("int4", "fp8") or is_dynamic(item) for item in plans)
    pairs = zip(plans, apart, strict=True)
    return tuple(dataclasses.replace(item, precision="fp32") if alone else item for item, alone in pairs)


def find_dynamic(index: Index, plans: Sequence[LayerPlan], profile: Profile) -> dict[str, str]:
    """Return the layers that are to be so, each with why it cannot be; an empty text where it can.

    Raises:
        QuantizeError: The target has no such layers.
    """
    found: dict[str, str] = {}
    for item in filter(is_dynamic, plans):
        if not profile.dynamic:
            hint = "give it another calibrator, or compile for onnxruntime"
            raise QuantizeError(
                f"{profile.name} takes no ranges that are found in every run", where=item.name, hint=hint
            )
        nodes = [node for node in index.nodes if layer_of(node) == item.name]
        found[item.name] = next(
            filter(None, (_why_not(index, node, profile) for node in nodes)), "" if nodes else NO_NODE
        )
    return found


def _why_not(index: Index, node: onnx.NodeProto, profile: Profile) -> str:
    if node.op_type not in _LINEAR:
        return "dynamic ranges are for linear layers"
    if node.op_type == "Gemm" and attribute(node, "transA", 0):
        return "its input is transposed"
    return why_not_weighted(index, node, profile)


def rewrite(
    placed: onnx.ModelProto, index: Index, layers: frozenset[str], ranges: Mapping[str, WeightRange], profile: Profile
) -> onnx.ModelProto:
    """Return a placed graph with these layers in int8.

    Args:
        placed: The graph, with these layers in float.
        index: The fp32 graph.
        layers: Names of layers that can be so.
        ranges: Layer → the range of its weight.
        profile: The target's table.

    Raises:
        QuantizeError: A layer has no weight range, or one that does not fit.
    """
    originals = {node.name: node for node in index.nodes if layer_of(node) in layers}
    out = Writer(Index(placed).names())
    quantized: dict[str, tuple[str, str, str]] = {}
    for node in placed.graph.node:
        layer, original = layer_of(node), originals.get(node.name)
        if original is None or layer is None:
            out.nodes.append(node)
            continue
        if layer not in ranges:
            raise QuantizeError("there is no range of its weight", where=layer)
        tensor = node.input[0]
        if tensor not in quantized:
            quantized[tensor] = _quantized(out, tensor)
        found = weights_of(index, original, ranges[layer], steps=profile.weight_steps, step=None, layer=layer)
        _layer(out, node, found, quantized[tensor], profile)
    return with_nodes(placed, out.nodes, out.initializers)


def _quantized(out: Writer, tensor: str) -> tuple[str, str, str]:
    """Append what makes a tensor's codes, step and zero point."""
    names = [out.name(f"{tensor}/dynamic/{word}") for word in ("codes", "step", "zero")]
    kind = "DynamicQuantizeLinear"
    out.nodes.append(helper.make_node(kind, [tensor], names, out.name(f"{tensor}/{kind}")))
    return names[0], names[1], names[2]


def _layer(out: Writer, node: onnx.NodeProto, found: Weights, given: tuple[str, str, str], profile: Profile) -> None:
    """Append a layer; the product keeps the node's name, the last node its output."""
    codes, step, zero = given
    stem, final = node.name, node.output[0]
    values = found.codes(profile.weight_steps)
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        values = values.T
    weight = out.constant(f"{stem}/weight/codes", values)
    nothing = out.constant(f"{stem}/weight/zero", np.zeros(found.scale.shape, np.int8))
    product = onnx.NodeProto()
    product.CopyFrom(
        helper.make_node("MatMulInteger", [codes, weight, zero, nothing], [out.name(f"{stem}/sums")], stem)
    )
    product.metadata_props.extend(node.metadata_props)
    out.nodes.append(product)
    sums = out.node("Cast", [product.output[0]], out.name(f"{stem}/float"), f"{stem}/Cast", to=TensorProto.FLOAT)
    scale = out.constant(f"{stem}/weight/scale", found.scale)
    steps = out.node("Mul", [step, scale], out.name(f"{stem}/steps"), f"{stem}/scales")
    last = found.bias is None and found.rest is None
    value = out.node("Mul", [sums, steps], final if last else out.name(f"{stem}/product"), f"{stem}/Mul")
    if found.bias is not None:
        bias = out.constant(f"{stem}/bias", found.bias.astype(np.float32))
        out.node("Add", [value, bias], final, f"{stem}/bias/Add")
    elif found.rest is not None:
        name, factor = found.rest
        if factor != 1:
            weighed = out.constant(f"{stem}/beta", np.asarray(factor, np.float32))
            name = out.node("Mul", [name, weighed], out.name(f"{stem}/bias/scaled"), f"{stem}/bias/Mul")
        out.node("Add", [value, name], final, f"{stem}/bias/Add")
