"""The layout that ONNX Runtime's CPU kernels want of a quantized graph.

TensorRT's layout has symmetric int8 everywhere, which on a CPU is slower than fp32: a Relu between a convolution and
its QuantizeLinear keeps both apart. Here an activation that comes from a Relu is quantized right behind it to uint8
with zero point 0 and the same scale, which lets ONNX Runtime drop the Relu and form QLinearConv and QGemm. Up to the
calibrated maximum its codes are the same numbers; above it, where int8 clips, uint8 goes on to twice the maximum.
Weights become int8 initializers and biases int32 ones.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from repo_builder.core.tensors import Array

LAYER_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Rounding to codes commutes with these: they pick or move values.
_PASSES = ("MaxPool", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity")


class _Graph:
    """A graph with the look-ups that rewriting needs; look-ups are made anew after each change."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.index()

    def index(self) -> None:
        self.producer = {name: node for node in self.graph.node for name in node.output}
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.graph.node:
            for name in node.input:
                self.consumers[name].append(node)
        self.initializers = {item.name: item for item in self.graph.initializer}
        self.graph_outputs = {item.name for item in self.graph.output}

    def constant(self, name: str) -> Array | None:
        """Return a constant's value, None where ``name`` is computed."""
        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        node = self.producer.get(name)
        if node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
            return numpy_helper.to_array(node.attribute[0].t)
        return None

    def add_constant(self, name: str, value: Array) -> str:
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def pair(self, name: str) -> tuple[NodeProto, NodeProto] | None:
        """Return the QuantizeLinear and DequantizeLinear that ``name`` comes from, None where it does not."""
        dequantize = self.producer.get(name)
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return None
        quantize = self.producer.get(dequantize.input[0])
        return (quantize, dequantize) if quantize is not None and quantize.op_type == "QuantizeLinear" else None

    def sweep(self) -> None:
        """Drop nodes and initializers that nothing reads."""
        while True:
            self.index()
            dead = [
                node
                for node in self.graph.node
                if not any(self.consumers.get(name) or name in self.graph_outputs for name in node.output)
            ]
            if not dead:
                break
            for node in dead:
                self.graph.node.remove(node)
        used = {name for node in self.graph.node for name in node.input} | self.graph_outputs
        for item in [item for item in self.graph.initializer if item.name not in used]:
            self.graph.initializer.remove(item)


def to_cpu_layout(model: onnx.ModelProto, *, signed_inputs: bool) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return the model in the CPU's layout.

    Args:
        model: A model with Q/DQ in TensorRT's layout; it is left as it is.
        signed_inputs: Whether layers that read a signed activation stay int8. Where the CPU adds pairs of 8-bit
            products in saturating 16 bits (AVX2 without VNNI) they must not.

    Returns:
        The new model and the names of the layer nodes that were put back to fp32.
    """
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    graph = _Graph(rewritten)
    for node in [item for item in graph.graph.node if item.op_type == "QuantizeLinear"]:
        _after_relu(graph, node)
    graph.index()
    restored: list[str] = []
    for node in [item for item in graph.graph.node if item.op_type in LAYER_OPS]:
        pair = graph.pair(node.input[0])
        if pair is None:
            continue
        if not signed_inputs and _is_signed(graph, pair[0]):
            _restore(graph, node)
            restored.append(node.name)
        else:
            _fold_constants(graph, node)
    graph.sweep()
    _sort(graph)
    del rewritten.graph.value_info[:]
    return rewritten, tuple(restored)


def _after_relu(graph: _Graph, quantize: NodeProto) -> None:
    """Make an activation's Q/DQ unsigned and put a copy right behind the Relu that it comes from."""
    scale = graph.constant(quantize.input[1])
    if graph.constant(quantize.input[0]) is not None or scale is None or scale.size != 1:
        return
    tensor, between = quantize.input[0], 0
    while (node := graph.producer.get(tensor)) is not None and node.op_type in _PASSES:
        if len(graph.consumers[tensor]) != 1 or tensor in graph.graph_outputs:
            return
        tensor, between = node.input[0], between + 1
    if node is None or node.op_type != "Relu":
        return
    zero = graph.add_constant(f"{quantize.name or quantize.output[0]}/uint8_zero", np.zeros(scale.shape, np.uint8))
    quantize.input[2] = zero
    for consumer in graph.consumers[quantize.output[0]]:
        consumer.input[2] = zero
    if between:
        _insert_pair(graph, tensor, quantize.input[1], zero)


def _insert_pair(graph: _Graph, tensor: str, scale: str, zero: str) -> None:
    """Quantize and dequantize ``tensor`` for all who read it."""
    quantized, floats = f"{tensor}/quantized", f"{tensor}/dequantized"
    for consumer in graph.consumers[tensor]:
        for place, name in enumerate(consumer.input):
            if name == tensor:
                consumer.input[place] = floats
    graph.graph.node.extend(
        [
            helper.make_node("QuantizeLinear", [tensor, scale, zero], [quantized], name=f"{tensor}/QuantizeLinear"),
            helper.make_node("DequantizeLinear", [quantized, scale, zero], [floats], name=f"{tensor}/DequantizeLinear"),
        ]
    )
    graph.index()


def _is_signed(graph: _Graph, quantize: NodeProto) -> bool:
    zero = graph.constant(quantize.input[2])
    return zero is None or zero.dtype == np.int8


def _restore(graph: _Graph, node: NodeProto) -> None:
    """Take a layer's Q/DQ away: it reads its float input and weight again."""
    for place in (0, 1):
        name = node.input[place]
        transpose = graph.producer.get(name)
        pair = graph.pair(name)
        if pair is not None:
            node.input[place] = pair[0].input[0]
        elif transpose is not None and transpose.op_type == "Transpose":
            inner = graph.pair(transpose.input[0])
            if inner is not None:
                transpose.input[0] = inner[0].input[0]


def _fold_constants(graph: _Graph, node: NodeProto) -> None:
    """Turn a layer's quantized weight into an int8 initializer and its bias into an int32 one."""
    name, transpose = node.input[1], graph.producer.get(node.input[1])
    permutation: list[int] | None = None
    if transpose is not None and transpose.op_type == "Transpose":
        name = transpose.input[0]
        permutation = next((list(item.ints) for item in transpose.attribute if item.name == "perm"), None)
    pair = graph.pair(name)
    weight = graph.constant(pair[0].input[0]) if pair else None
    scale = graph.constant(pair[0].input[1]) if pair else None
    if pair is None or weight is None or scale is None:
        return
    axis = next((item.i for item in pair[0].attribute if item.name == "axis"), 0)
    shaped = scale.reshape([-1 if place == axis else 1 for place in range(weight.ndim)]) if scale.size > 1 else scale
    codes = np.clip(np.rint(weight / shaped), -128, 127).astype(np.int8)
    if transpose is not None and name != node.input[1]:
        permutation = permutation or list(range(weight.ndim))[::-1]
        codes, axis = np.ascontiguousarray(codes.transpose(permutation)), permutation.index(axis)
    stem = node.name or node.output[0]
    node.input[1] = _dequantized(graph, f"{stem}/weight", codes, scale, axis)
    input_scale = graph.constant(graph.producer[node.input[0]].input[1])
    bias = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if bias is not None and input_scale is not None and input_scale.size == 1:
        step = (input_scale.reshape(()) * scale).astype(np.float32)
        limit = np.iinfo(np.int32).max
        steps = np.rint(bias.astype(np.float64) / step)
        if np.abs(steps).max(initial=0) < limit:
            node.input[2] = _dequantized(graph, f"{stem}/bias", steps.astype(np.int32), step, 0)


def _dequantized(graph: _Graph, stem: str, codes: Array, scale: Array, axis: int) -> str:
    """Add ``codes`` as an initializer and its DequantizeLinear; return the float tensor's name."""
    names = [
        graph.add_constant(f"{stem}/codes", codes),
        graph.add_constant(f"{stem}/scale", scale.astype(np.float32)),
        graph.add_constant(f"{stem}/zero", np.zeros(scale.shape, codes.dtype)),
    ]
    output = f"{stem}/dequantized"
    node = helper.make_node("DequantizeLinear", names, [output], name=f"{stem}/DequantizeLinear")
    if scale.size > 1:
        node.attribute.append(helper.make_attribute("axis", axis))
    graph.graph.node.append(node)
    return output


def _sort(graph: _Graph) -> None:
    """Put the nodes in an order in which each comes after what it reads."""
    ready = {item.name for item in graph.graph.input} | {item.name for item in graph.graph.initializer} | {""}
    waiting, ordered = list(graph.graph.node), []
    while waiting:
        late = []
        for node in waiting:
            if all(name in ready for name in node.input):
                ordered.append(node)
                ready.update(node.output)
            else:
                late.append(node)
        if len(late) == len(waiting):
            raise ValueError("the graph has a cycle")
        waiting = late
    copies = [NodeProto() for _ in ordered]
    for copy, node in zip(copies, ordered, strict=True):
        copy.CopyFrom(node)
    del graph.graph.node[:]
    graph.graph.node.extend(copies)


def quantized_layers(model: onnx.ModelProto) -> int:
    """Return how many layers read a dequantized input."""
    producer = {name: node for node in model.graph.node for name in node.output}
    return sum(
        1
        for node in model.graph.node
        if node.op_type in LAYER_OPS
        and node.input[0] in producer
        and producer[node.input[0]].op_type == "DequantizeLinear"
    )
