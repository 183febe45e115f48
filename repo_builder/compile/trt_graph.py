"""What an ONNX graph says about precision, for a builder that has to be told: its layers and its tensors' types.

int8 stands in the graph as Q/DQ, fp16 as float16 tensors. A weakly typed builder chooses freely among the precisions
that its flags allow, so the graph's tensor types are handed to it as constraints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto, shape_inference

# Operators that hold a layer's weights.
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_REARRANGING = ("QuantizeLinear", "DequantizeLinear", "Cast", "Transpose", "Reshape")
_FLOATS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}


@dataclass(frozen=True, kw_only=True)
class GraphLayer:
    """One layer of the recipe as it stands in the graph.

    Attributes:
        name: Its name in the recipe, or the node's where no layer is known for it.
        node: Name of the ONNX node that holds its weights.
        op: The node's operator.
        asked: ``int8``, ``fp16`` or ``fp32``.
    """

    name: str
    node: str
    op: str
    asked: str


@dataclass(frozen=True, kw_only=True)
class GraphPrecisions:
    """What a builder needs to know of a graph.

    Attributes:
        layers: The layers, in the order of the graph.
        nodes: All node names, in the order of the graph.
        float_tensors: Float tensor → ``fp32`` or ``fp16``, tensors of int8 layers left out.
        float_nodes: Node → the precision of its output, likewise.
        has_int8: Whether there is a quantized layer.
        has_fp16: Whether there is a float16 tensor.
    """

    layers: tuple[GraphLayer, ...]
    nodes: tuple[str, ...]
    float_tensors: dict[str, str]
    float_nodes: dict[str, str]
    has_int8: bool
    has_fp16: bool


def read(model: onnx.ModelProto, layer_precisions: Mapping[str, str]) -> GraphPrecisions:
    """Read a graph.

    Args:
        model: The graph, every node named.
        layer_precisions: Layer → precision; layers are matched with nodes by name.
    """
    graph = shape_inference.infer_shapes(model).graph
    kinds = {item.name: item.type.tensor_type.elem_type for item in (*graph.value_info, *graph.output, *graph.input)}
    dequantized = {output for node in graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    stored = _stored(graph)
    layers: list[GraphLayer] = []
    float_tensors: dict[str, str] = {}
    float_nodes: dict[str, str] = {}
    for node in graph.node:
        is_int8 = bool(node.input) and node.input[0] in dequantized
        if node.op_type in WEIGHTED and node.input[1] in stored:
            name = layer_of(node.name, layer_precisions)
            kind = _FLOATS.get(kinds.get(node.output[0], 0), "fp32")
            found = "int8" if is_int8 else kind
            layers.append(
                GraphLayer(
                    name=name or node.name,
                    node=node.name,
                    op=node.op_type,
                    asked=layer_precisions.get(name or "", found),
                )
            )
        if is_int8 or node.op_type in ("QuantizeLinear", "DequantizeLinear", "Constant", "Cast"):
            continue
        for output in node.output:
            if kinds.get(output) in _FLOATS:
                float_tensors[output] = float_nodes[node.name] = _FLOATS[kinds[output]]
    return GraphPrecisions(
        layers=tuple(layers),
        nodes=tuple(node.name for node in graph.node),
        float_tensors=float_tensors,
        float_nodes=float_nodes,
        has_int8=bool(dequantized),
        has_fp16=TensorProto.FLOAT16 in kinds.values(),
    )


def layer_of(node: str, layers: Mapping[str, str]) -> str | None:
    """Return the layer that a node belongs to, by its name: the layer's own, or the exporter's path of modules.

    ``/feature_layers/feature_layers.0/Conv`` is of ``feature_layers.0``: a component that repeats the path so far, as
    those of containers do, replaces it.
    """
    if node in layers:
        return node
    path = ""
    best: str | None = None
    for part in node.strip("/").split("/"):
        path = part if not path or part.startswith(f"{path}.") else f"{path}.{part}"
        for candidate in (path, part):
            if candidate in layers:
                best = candidate
    return best


def _stored(graph: onnx.GraphProto) -> set[str]:
    """Return the tensors that hold weights: initializers, and what Q/DQ, casts and re-arrangements make of them."""
    found = {item.name for item in graph.initializer}
    for node in graph.node:  # in topological order, as ONNX demands
        if node.op_type == "Constant" or (node.op_type in _REARRANGING and node.input[0] in found):
            found.update(node.output)
    return found
