"""An ONNX model from anywhere, made ready: new enough, every node named, constants plain, BatchNorm folded.

onnx and numpy only.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, version_converter
from onnx.reference import ReferenceEvaluator

from repo_builder.core.errors import QuantizeError, first_line
from repo_builder.core.graphs import DQ, LAYER_OPS, MOVES, TYPE, Graph, Q, copy_fields, drop_unused, opset
from repo_builder.core.onnx_files import LARGEST_BYTES
from repo_builder.core.tensors import Array
from repo_builder.quantize.affine import fold_affine

_READ_BYTES = 4096  # of constants that the converter may want to read: axes, splits, sizes
_OPSET = 13  # the first with per-channel QuantizeLinear


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that can be quantized; one that is ready already comes back equal.

    Opsets before 13 are converted to 13. Initializers are no inputs. Nodes without a name of their own are named
    ``Conv_3`` after operator and place. Constant nodes become initializers, and so does what moves and casts of them
    alone compute, as a transposed weight. BatchNormalization is folded into a Conv, ConvTranspose or Gemm that feeds
    nothing else.

    Raises:
        QuantizeError: The model is quantized already, or too old and not convertible.
    """
    if any(node.op_type in (Q, DQ) for node in model.graph.node):
        hint = "bring the fp32 model, or leave out [[quantize.layers]] to take it as it is"
        raise QuantizeError("the model is quantized already: it has QuantizeLinear nodes", hint=hint)
    result = onnx.ModelProto()
    result.CopyFrom(current(model))
    _close_inputs(result)
    _name_nodes(result)
    _plain_constants(result)
    fold_batch_norm(result)
    fold_affine(result)
    if result.ByteSize() > LARGEST_BYTES:
        return result  # more than ONNX's inference takes; who needs shapes does without weights
    try:
        return onnx.shape_inference.infer_shapes(result, data_prop=True)
    except Exception as error:  # onnx's errors share no base class
        raise QuantizeError(f"ONNX cannot infer the model's shapes: {first_line(error)}") from error


def current(model: onnx.ModelProto, needed: int = _OPSET) -> onnx.ModelProto:
    """Return a model of an opset that has the Q/DQ that is needed: the model itself, or one converted to it.

    Args:
        model: The model.
        needed: The oldest version of the default operator set that will do.

    Raises:
        QuantizeError: It is too old and cannot be converted.
    """
    if opset(model) >= needed:
        return model
    hint = f"export the model again with opset {needed} or later"
    why = f"the model has opset {opset(model)}, and converting it to {needed} fails"
    if model.functions:  # the converter drops them
        raise QuantizeError(f"{why}: it brings functions of its own", hint=hint)
    try:
        made = _converted(model, needed)
    except Exception as error:  # onnx's errors share no base class
        raise QuantizeError(f"{why}: {first_line(error)}", hint=hint) from error
    metadata = {node.output[0]: node.metadata_props for node in model.graph.node if node.metadata_props}
    for node in made.graph.node:  # the converter keeps names, and drops what they stand for
        node.metadata_props.extend(metadata.get(node.output[0], ()) if node.output else ())
    return made


def _converted(model: onnx.ModelProto, needed: int) -> onnx.ModelProto:
    """Return a model of a newer opset. Weights travel as inputs without values: the converter takes 2 GB at most."""
    light = onnx.ModelProto()
    copy_fields(model, light, but=("graph",))
    copy_fields(model.graph, light.graph, but=("initializer",))
    given = {item.name for item in model.graph.input}
    weights = {item.name: item for item in model.graph.initializer if item.ByteSize() > _READ_BYTES}
    light.graph.initializer.extend(item for item in model.graph.initializer if item.name not in weights)
    light.graph.input.extend(
        helper.make_tensor_value_info(item.name, item.data_type, list(item.dims))
        for item in weights.values()
        if item.name not in given
    )
    made = version_converter.convert_version(light, needed)
    kept = [item for item in made.graph.input if item.name in given or item.name not in weights]
    del made.graph.input[:]
    made.graph.input.extend(kept)
    made.graph.initializer.extend(weights.values())
    return made


def _close_inputs(model: onnx.ModelProto) -> None:
    """Take initializers off the list of inputs, where files before IR version 4 had to name them."""
    stored = {item.name for item in model.graph.initializer}
    kept = [item for item in model.graph.input if item.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, 4)


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own; '#' is kept for later runs of one layer (``repo_builder.core.graphs``)."""
    counts: Counter[str] = Counter()
    for place, node in enumerate(model.graph.node):
        if any(item.key == TYPE for item in node.metadata_props):
            continue  # exported here: its name is the layer's
        node.name = (node.name or f"{node.op_type}_{place}").replace("#", "_")
        counts[node.name] += 1
        if counts[node.name] > 1:
            node.name = f"{node.name}_{place}"
            counts[node.name] += 1


def _plain_constants(model: onnx.ModelProto) -> None:
    known = {item.name: item for item in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type == "Constant":
            value = _only(
                ReferenceEvaluator(_single(node, opset(model))), {}
            )  # any of its forms: value, value_float, value_ints, ...
        elif node.op_type in MOVES | {"Cast"} and node.input and all(name in known for name in node.input):
            feeds = {name: numpy_helper.to_array(known[name]) for name in node.input}
            value = _only(ReferenceEvaluator(_single(node, opset(model))), feeds)
        else:
            continue
        stored = model.graph.initializer.add()
        stored.CopyFrom(numpy_helper.from_array(value, node.output[0]))
        known[stored.name] = stored
        model.graph.node.remove(node)


def _only(evaluator: ReferenceEvaluator, feeds: dict[str, Array]) -> Array:
    values: Any = evaluator.run(None, feeds)
    return np.asarray(values[0])


def _single(node: onnx.NodeProto, version: int) -> onnx.ModelProto:
    """Return a model of one node; value types are left open, as the reference evaluator does not ask for them."""
    inputs = [helper.make_value_info(name, onnx.TypeProto()) for name in node.input]
    outputs = [helper.make_value_info(name, onnx.TypeProto()) for name in node.output]
    graph = helper.make_graph([node], "one", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])


def fold_batch_norm(model: onnx.ModelProto) -> None:
    """Fold each BatchNormalization into the layer that feeds it, in place, where the layer feeds nothing else.

    In inference BatchNorm is y = g·(x − mean) + beta with g = gamma / sqrt(var + eps) for each channel, so behind a
    layer x = W·v + b it is the layer with weight g·W and bias g·(b − mean) + beta, which are computed in float64.
    """
    outputs = {item.name for item in model.graph.output}
    for norm in [node for node in model.graph.node if node.op_type == "BatchNormalization"]:
        graph = Graph(model)
        layer = graph.producers.get(norm.input[0])
        fixed = all(name in graph.constants for name in norm.input[1:5])
        if layer is None or layer.op_type not in LAYER_OPS - {"MatMul"} or not fixed:
            continue
        alone = len(graph.consumers[norm.input[0]]) == 1 and norm.input[0] not in outputs and len(norm.output) == 1
        own = all(name in graph.constants and len(graph.consumers[name]) == 1 for name in layer.input[1:] if name)
        plain = layer.op_type != "Gemm" or _attribute(layer, "alpha", 1) == _attribute(layer, "beta", 1) == 1
        if alone and own and plain:
            _fold_into(model, graph, layer, norm)
            layer.output[0] = norm.output[0]
            model.graph.node.remove(norm)
    drop_unused(model)


def unfolded(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return for each BatchNormalization that is left its name and why, as in ``norm1 (behind Relu)``."""
    graph = Graph(model)
    found = []
    for norm in model.graph.node:
        if norm.op_type != "BatchNormalization":
            continue
        layer = graph.producers.get(norm.input[0])
        if layer is None or layer.op_type not in LAYER_OPS - {"MatMul"}:
            why = f"behind {layer.op_type if layer is not None else 'an input'}"
        else:
            why = f"{layer.name} is read or shared by others, too"
        found.append(f"{norm.name or norm.output[0]} ({why})")
    return tuple(found)


def _fold_into(model: onnx.ModelProto, graph: Graph, layer: onnx.NodeProto, norm: onnx.NodeProto) -> None:
    gamma, beta, mean, variance = (np.asarray(graph.value(name), np.float64) for name in norm.input[1:5])
    gain = gamma / np.sqrt(variance + _attribute(norm, "epsilon", 1e-5))
    stored = graph.constants[layer.input[1]]
    weight = numpy_helper.to_array(stored).astype(np.float64)
    if layer.op_type == "ConvTranspose":
        groups = int(_attribute(layer, "group", 1))
        gains = gain.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
        folded = (weight.reshape(groups, -1, *weight.shape[1:]) * gains).reshape(weight.shape)
    elif layer.op_type == "Gemm" and not _attribute(layer, "transB", 0):
        folded = weight * gain
    else:
        folded = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
    has_bias = len(layer.input) > 2 and bool(layer.input[2])
    bias = np.asarray(graph.value(layer.input[2]), np.float64) if has_bias else np.zeros_like(gain)
    kind = helper.tensor_dtype_to_np_dtype(stored.data_type)
    stored.CopyFrom(numpy_helper.from_array(folded.astype(kind), stored.name))
    new = numpy_helper.from_array(((bias - mean) * gain + beta).astype(kind), f"{layer.name}.folded_bias")
    model.graph.initializer.append(new)
    del layer.input[2:]
    layer.input.append(new.name)


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    for attribute in node.attribute:
        if attribute.name == name:
            return float(helper.get_attribute_value(attribute))
    return default
