"""Q/DQ into an ONNX graph, in the form that TensorRT 8.5 parses.

Weights stay fp32 initializers behind a pair of their own; those of Gemm and MatMul are stored (outputs, inputs), the
way a linear layer from torch is written, so that the channels' axis is 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from repo_builder.core.errors import QuantizeError, first_line
from repo_builder.core.graphs import DQ, Graph, Q, drop_unused
from repo_builder.core.tensors import Array
from repo_builder.quantize import Ranges
from repo_builder.quantize.calibrators import LARGEST, MIN_AMAX


def insert(model: onnx.ModelProto, ranges: Mapping[str, Ranges]) -> onnx.ModelProto:
    """Return a copy with a Q/DQ pair before each input and weight of the named layers.

    Args:
        model: What ``prepare`` returns.
        ranges: Node name → its ranges.

    Raises:
        QuantizeError: A weight is not fp32.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.value_info[:]
    graph = Graph(model)
    for node in model.graph.node:
        own = onnx.NodeProto()
        own.CopyFrom(node)
        found = ranges.get(node.name)
        if found is not None:
            for place, amax in enumerate(found.inputs):
                own.input[place] = _pair(result, own.input[place], f"{node.name}.input{place or ''}", amax, axis=None)
            if found.weight is not None:
                _quantize_weight(result, own, weight_of(graph, node), found.weight)
        result.graph.node.append(own)
    drop_unused(result)
    return result


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with inferred shapes, after ONNX's checker has seen it.

    Raises:
        QuantizeError: It is not valid ONNX.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred, full_check=True)
    except Exception as error:  # onnx's errors share no base class
        raise QuantizeError(f"Q/DQ makes the model invalid: {first_line(error)}") from error
    return inferred


def weight_of(graph: Graph, node: onnx.NodeProto) -> Array:
    """Return a layer's weight as it is stored behind Q/DQ, float32.

    Raises:
        QuantizeError: It is of another type.
    """
    value = np.asarray(graph.value(node.input[1]))
    if value.dtype != np.float32:
        raise QuantizeError(f"its weight is {value.dtype}; int8 starts from float32", where=node.name)
    return np.ascontiguousarray(value.T) if _turned(node) else value


def channel_axis(node: onnx.NodeProto) -> int:
    """Return the axis of a stored weight that counts output channels."""
    return 1 if node.op_type == "ConvTranspose" else 0


def _turned(node: onnx.NodeProto) -> bool:
    """Whether a linear layer's weight is (inputs, outputs)."""
    straight = any(item.name == "transB" and item.i for item in node.attribute)
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not straight)


def _quantize_weight(model: onnx.ModelProto, node: onnx.NodeProto, weight: Array, amax: Array) -> None:
    """Put a weight behind Q/DQ and hand it to its layer."""
    name, axis = node.input[1], channel_axis(node) if amax.ndim else None
    if _turned(node):
        name = f"{node.name}.weight"
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    name = _pair(model, name, f"{node.name}.weight", amax, axis=axis)
    if node.op_type == "MatMul":
        turned = f"{node.name}.weight/Transpose"
        model.graph.node.append(helper.make_node("Transpose", [name], [turned], name=turned, perm=[1, 0]))
        name = turned
    elif _turned(node):
        kept = [item for item in node.attribute if item.name != "transB"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("transB", 1)])
    node.input[1] = name


def _pair(model: onnx.ModelProto, tensor: str, name: str, amax: Array, *, axis: int | None) -> str:
    """Append QuantizeLinear and DequantizeLinear, and return the tensor that comes out."""
    scale = np.asarray(np.maximum(amax, np.float32(MIN_AMAX)) / np.float32(LARGEST), np.float32)
    zero: Array = np.zeros(scale.shape, np.int8)
    constants: dict[str, Array] = {f"{name}_scale": scale, f"{name}_zero_point": zero}
    model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
    for kind in (Q, DQ):
        made = helper.make_node(kind, [tensor, *constants], [f"{name}/{kind}"], name=f"{name}/{kind}")
        if axis is not None:
            made.attribute.append(helper.make_attribute("axis", axis))
        model.graph.node.append(made)
        tensor = made.output[0]
    return tensor
