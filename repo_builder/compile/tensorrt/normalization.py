"""LayerNormalization in operators that every TensorRT parses: it came with opset 17, and 8.5 does not have it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

_EPSILON = 1e-5  # ONNX's default


def without_layer_normalization(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with each LayerNormalization written out; the model itself where it has none.

    y = (x - mean) / sqrt(variance + epsilon) · scale + bias over the axes from ``axis`` on, as ONNX defines it. Where
    the tensor is fp16 this runs in fp32, as ONNX's ``stash_type`` asks: squares of fp16 overflow at 256.

    Args:
        model: A model of opset 13 to 17, in which ReduceMean's axes are an attribute.
    """
    if not any(node.op_type == "LayerNormalization" for node in model.graph.node):
        return model
    known = shape_inference.infer_shapes(model).graph
    tensors = {item.name: item.type.tensor_type for item in (*known.value_info, *known.input, *known.output)}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    for node in model.graph.node:
        if node.op_type != "LayerNormalization":
            result.graph.node.append(node)
            continue
        tensor = tensors[node.input[0]]
        rank = len(tensor.shape.dim)
        _write_out(result.graph, node, rank, half=tensor.elem_type == TensorProto.FLOAT16)
    return result


def _write_out(graph: onnx.GraphProto, node: onnx.NodeProto, rank: int, *, half: bool) -> None:
    said = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    axes = list(range(said.get("axis", -1) % rank, rank))
    base = node.name or node.output[0]

    def add(kind: str, inputs: list[str], last: str, output: str = "", **attributes: Any) -> str:  # noqa: ANN401 - as the node takes them
        made = helper.make_node(kind, inputs, [output or f"{base}/{last}_out"], name=f"{base}/{last}", **attributes)
        graph.node.append(made)
        return str(made.output[0])

    def constant(last: str, value: float) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), f"{base}/{last}"))
        return f"{base}/{last}"

    def wide(tensor: str, last: str) -> str:
        return add("Cast", [tensor], last, to=TensorProto.FLOAT) if half else tensor

    outputs = dict(zip(("y", "mean", "deviation"), node.output, strict=False))  # the last two may be left out
    x = wide(node.input[0], "wide")
    mean = add("ReduceMean", [x], "mean", outputs.get("mean", ""), axes=axes, keepdims=1)
    centred = add("Sub", [x, mean], "centred")
    variance = add("ReduceMean", [add("Mul", [centred, centred], "squared")], "variance", axes=axes, keepdims=1)
    epsilon = constant("epsilon", said.get("epsilon", _EPSILON))
    deviation = add("Sqrt", [add("Add", [variance, epsilon], "above_zero")], "deviation")
    if outputs.get("deviation"):
        add("Reciprocal", [deviation], "inverse", outputs["deviation"])
    y = add("Div", [centred, deviation], "normed")
    for kind, last, place in (("Mul", "scaled", 1), ("Add", "shifted", 2)):
        if len(node.input) > place and node.input[place]:
            y = add(kind, [y, wide(node.input[place], f"{last}_by")], last)
    graph.node[-1].output[0] = node.output[0]
    if half:
        graph.node[-1].output[0] = y
        add("Cast", [y], "narrow", node.output[0], to=TensorProto.FLOAT16)
