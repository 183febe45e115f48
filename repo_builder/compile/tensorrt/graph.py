"""What an ONNX graph says about precision, for a builder that has to be told: its layers and its tensors' types.

int8 and fp8 stand in the graph as Q/DQ, fp16 as float16 tensors. A weakly typed builder chooses freely among the
precisions that its flags allow, so the graph's tensor types are handed to it as constraints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto, shape_inference

from repo_builder.core.graphs import DQ, Graph, Q, layer_of

_FLOATS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}


@dataclass(frozen=True, kw_only=True)
class GraphLayer:
    """One node that computes a layer of the recipe.

    Attributes:
        name: The layer.
        node: The node; a layer that runs more than once has several.
        asked: ``int8``, ``fp8``, ``fp16`` or ``fp32``.
    """

    name: str
    node: str
    asked: str


@dataclass(frozen=True, kw_only=True)
class GraphPrecisions:
    """What a builder needs to know of a graph.

    Attributes:
        layers: The nodes that compute layers, in the order of the graph.
        nodes: All node names, in the order of the graph.
        float_makers: Tensor of fp32 or fp16 → the node that makes it. Left out is what quantizers and quantized nodes
            make, and what is made of that alone: a Relu behind an int8 layer is fused into it and belongs to its
            precision.
        float_nodes: Node → ``fp32`` or ``fp16``, the type of its output, likewise.
        has_int8: Whether there is a quantizer to int8.
        has_fp16: Whether there is a float16 tensor.
        has_float8: Whether there is a quantizer to fp8, or a weight of it.
    """

    layers: tuple[GraphLayer, ...]
    nodes: tuple[str, ...]
    float_makers: dict[str, str]
    float_nodes: dict[str, str]
    has_int8: bool
    has_fp16: bool
    has_float8: bool = False


def read(model: onnx.ModelProto, layer_precisions: Mapping[str, str]) -> GraphPrecisions:
    """Read a graph.

    Args:
        model: The graph, every node named.
        layer_precisions: Layer → precision.
    """
    graph = Graph(model)
    known = shape_inference.infer_shapes(model).graph
    kinds = {item.name: item.type.tensor_type.elem_type for item in (*known.value_info, *known.output, *known.input)}
    layers = [
        GraphLayer(name=layer, node=node.name or node.output[0], asked=layer_precisions[layer])
        for node in model.graph.node
        if (layer := layer_of(node)) in layer_precisions and layer is not None
    ]
    float_makers: dict[str, str] = {}
    float_nodes: dict[str, str] = {}
    free = set(graph.constants)  # constants, and what is made of int8 layers' outputs alone
    for node in model.graph.node:  # in topological order, as ONNX demands
        if any(graph.dequantized(name) for name in node.input):
            free.update(node.output)
        if node.op_type in (Q, DQ, "Cast", "Constant"):
            continue
        is_layer = layer_precisions.get(layer_of(node) or "", "int8") not in ("int8", "fp8")
        if not is_layer and all(name in free for name in node.input):
            free.update(node.output)
        if set(node.output) <= free:
            continue
        for output in node.output:
            if kinds.get(output) in _FLOATS:
                float_makers[output], float_nodes[node.name] = node.name, _FLOATS[kinds[output]]
    codes = {graph.codes(node.output[0]) for node in model.graph.node if node.op_type == DQ}
    return GraphPrecisions(
        layers=tuple(layers),
        nodes=tuple(node.name for node in model.graph.node),
        float_makers=float_makers,
        float_nodes=float_nodes,
        has_int8="int8" in codes,
        has_fp16=TensorProto.FLOAT16 in kinds.values(),
        has_float8="fp8" in codes,
    )
