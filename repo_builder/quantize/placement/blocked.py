"""Linear layers whose weights alone are codes, of 4 bits with a scale for every block; all else of them is float.

    y = MatMul(x, DequantizeLinear(codes, scales, zeros, axis 0, block_size)) + bias

They are float to the rest of placement: they read float values and make float values. A Gemm is written so, too: its
weight as a MatMul has it (inputs, outputs), alpha in the weight, the bias added behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from repo_builder.core.errors import QuantizeError
from repo_builder.core.graphs import DQ, attribute, layer_of, own, with_nodes
from repo_builder.core.tensors import Array
from repo_builder.quantize.placement import blocks
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.placement.layers import NO_NODE
from repo_builder.quantize.placement.table import Profile
from repo_builder.quantize.placement.weights import bias_of
from repo_builder.quantize.placement.writer import Writer
from repo_builder.quantize.ranges import BlockRange
from repo_builder.quantize.rules import LayerPlan

_LINEAR = frozenset({"MatMul", "Gemm"})


def find_blocked(index: Index, plans: Sequence[LayerPlan], profile: Profile) -> dict[str, str]:
    """Return the layers that are to be int4, each with why it cannot be; an empty text where it can.

    Raises:
        QuantizeError: The target has no such layers.
    """
    found: dict[str, str] = {}
    for item in plans:
        if item.precision != "int4":
            continue
        if profile.why_no_blocks:
            hint = "give the layer another precision, or compile for onnxruntime"
            raise QuantizeError(profile.why_no_blocks, where=item.name, hint=hint)
        nodes = [node for node in index.nodes if own(node) and layer_of(node) == item.name]
        found[item.name] = next(filter(None, (why_not(index, node) for node in nodes)), "" if nodes else NO_NODE)
    return found


def why_not(index: Index, node: onnx.NodeProto) -> str:
    """Return why a node's weight cannot be 4-bit codes, an empty text where it can."""
    if node.op_type not in _LINEAR:
        return f"int4 weights are for linear layers (MatMul and Gemm), and this is {node.op_type}"
    if node.op_type == "Gemm" and attribute(node, "transA", 0):
        return "its input is transposed"
    if node.input[1] in index.floats:
        return "its weight is an activation: a product of two has none to store"
    weight = index.value(node.input[1])
    if weight is None:
        given = node.input[1] in index.initializers
        return "its weight is an input of the graph" if given else "its weight is computed while the model runs"
    if weight.dtype != np.float32:
        return f"its weight is {weight.dtype}; int4 starts from float32"
    if weight.size == 0 or weight.ndim != 2:
        return f"its weight has the shape {list(weight.shape)}"
    return "" if node.input[0] in index.floats else "its input is constant or no float32 tensor"


def matrix(index: Index, node: onnx.NodeProto) -> Array:
    """Return a linear layer's weight as (inputs, outputs), float32, a Gemm's alpha worked in.

    Raises:
        QuantizeError: It is not finite.
    """
    weight = np.asarray(index.value(node.input[1]), np.float32)
    if not np.isfinite(weight).all():
        raise QuantizeError("its weight is not finite", where=layer_of(node), hint="leave the layer in fp32")
    if node.op_type != "Gemm":
        return weight
    weight = weight.T if attribute(node, "transB", 0) else weight
    alpha = np.float32(attribute(node, "alpha", 1))
    return weight if alpha == 1 else weight * alpha


def block_ranges(model: onnx.ModelProto, plans: Sequence[LayerPlan]) -> dict[str, BlockRange]:
    """Return for each int4 layer how its weight becomes codes, as far as no sample has a say in it.

    Args:
        model: The fp32 graph.
        plans: What each layer is to become.

    Raises:
        QuantizeError: A weight is not finite.
    """
    rules = {item.name: item.rule for item in plans if item.precision == "int4" and item.rule is not None}
    found: dict[str, BlockRange] = {}
    if not rules:
        return found
    index = Index(model)
    for node in index.nodes:
        layer = layer_of(node) or ""
        if layer not in rules or layer in found or why_not(index, node):
            continue  # placement says why it stays float
        spec = rules[layer].weight
        found[layer] = blocks.find(
            matrix(index, node),
            block=spec.block or blocks.BLOCK,
            symmetric=bool(spec.symmetric),
            calibrator=spec.calibrator,
        )
    return found


def rewrite(
    placed: onnx.ModelProto, index: Index, layers: frozenset[str], ranges: Mapping[str, BlockRange]
) -> onnx.ModelProto:
    """Return a placed graph of opset 21 or later with the weights of these layers as codes.

    Args:
        placed: The graph, with these layers in float.
        index: The fp32 graph.
        layers: Names of layers that can be so.
        ranges: Layer → how its weight becomes codes.

    Raises:
        QuantizeError: A layer has no blocks, or those of another weight.
    """
    originals = {node.name: node for node in index.nodes if layer_of(node) in layers}
    out = Writer(Index(placed).names())
    for node in placed.graph.node:
        original = originals.get(node.name)
        if original is None or node.op_type != original.op_type:
            out.nodes.append(node)
            continue
        layer = layer_of(node) or ""
        if layer not in ranges:
            raise QuantizeError("there are no blocks of its weight", where=layer, hint="build again with --force")
        _layer(out, index, node, original, ranges[layer])
    return with_nodes(placed, out.nodes, out.initializers)


def _layer(out: Writer, index: Index, node: onnx.NodeProto, original: onnx.NodeProto, found: BlockRange) -> None:
    """Append a layer; the product keeps the node's name, the last node its output."""
    stem, final, weight = node.name, node.output[0], matrix(index, original)
    if (found.inputs, found.scale.shape[1]) != weight.shape:
        raise QuantizeError("its blocks are of another weight", where=layer_of(node), hint="build again with --force")
    element = TensorProto.INT4 if found.zero is None else TensorProto.UINT4
    zero = np.zeros(found.scale.shape, np.int8) if found.zero is None else found.zero
    names = [
        out.nibbles(f"{stem}/weight/codes", blocks.codes(weight, found), element),
        out.constant(f"{stem}/weight/scale", found.scale),
        out.nibbles(f"{stem}/weight/zero", zero, element),
    ]
    made = out.node(
        DQ, names, out.name(f"{stem}/weight/dequantized"), f"{stem}/weight/{DQ}", axis=0, block_size=found.block
    )
    bias, rest = bias_of(index, original, weight.shape[1])
    product = onnx.NodeProto()
    last = bias is None and rest is None
    output = final if last else out.name(f"{final}/product")
    product.CopyFrom(helper.make_node("MatMul", [node.input[0], made], [output], stem))
    product.metadata_props.extend(node.metadata_props)
    out.nodes.append(product)
    if bias is not None:
        out.node("Add", [output, out.constant(f"{stem}/bias", bias.astype(np.float32))], final, f"{stem}/bias/Add")
    elif rest is not None:
        name, factor = rest
        if factor != 1:
            weighed = out.constant(f"{stem}/beta", np.asarray(factor, np.float32))
            name = out.node("Mul", [name, weighed], out.name(f"{stem}/bias/scaled"), f"{stem}/bias/Mul")
        out.node("Add", [output, name], final, f"{stem}/bias/Add")
