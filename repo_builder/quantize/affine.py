"""Constants that are added to or multiplied with what a convolution makes, folded into its weight and bias.

Exporters of some frameworks write a convolution's bias as an Add behind it, and learned scales as a Mul. Between the
convolution and its activation they would keep a runtime from making one int8 operator of both. onnx and numpy only.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from repo_builder.core.graphs import Graph, free_name, own
from repo_builder.core.tensors import Array

_LAYERS = frozenset({"Conv", "ConvTranspose"})
_STEPS = frozenset({"Add", "Sub", "Mul", "Div"})


def fold_affine(model: onnx.ModelProto) -> None:
    """Fold sums, differences, products and quotients with one constant a channel into convolutions, in place.

    Done where the convolution's weight and bias are constant and nothing else reads what it makes; in float64, rounded
    once a fold. Weights that other nodes read, too, are copied.
    """
    while True:
        graph = Graph(model)
        outputs = {item.name for item in model.graph.output} | _inner(model)
        for node in model.graph.node:
            found = _foldable(graph, node, outputs)
            if found is not None:
                layer, constant = found
                _fold(model, graph, layer, node, constant)
                break
        else:
            return


def _foldable(graph: Graph, node: onnx.NodeProto, kept: set[str]) -> tuple[onnx.NodeProto, Array] | None:
    """Return the convolution that a node's constant can be folded into, and that constant, one number a channel."""
    if node.op_type not in _STEPS or not own(node):
        return None
    for place, name in enumerate(node.input):
        layer, other = graph.producers.get(name), node.input[1 - place]
        if layer is None or layer.op_type not in _LAYERS or other not in graph.constants:
            continue
        if place == 1 and node.op_type in ("Sub", "Div"):
            return None  # a constant less, or over, what the convolution makes
        alone = len(graph.consumers[name]) == 1 and name not in kept
        if not alone or not all(item in graph.constants for item in layer.input[1:] if item):
            return None
        value = _per_channel(graph, layer, numpy_helper.to_array(graph.constants[other]))
        return None if value is None or (node.op_type == "Div" and not value.all()) else (layer, value)
    return None


def _per_channel(graph: Graph, layer: onnx.NodeProto, value: Array) -> Array | None:
    """Return a constant as one float64 a channel, None where it is not that."""
    weight = graph.constants[layer.input[1]]
    rank = len(weight.dims)
    group = next((item.i for item in layer.attribute if item.name == "group"), 1)
    channels = weight.dims[0] if layer.op_type == "Conv" else weight.dims[1] * group
    kind = onnx.helper.tensor_dtype_to_np_dtype(weight.data_type)
    if value.dtype != kind or value.ndim > rank or not np.isfinite(value).all():
        return None
    shape = (1,) * (rank - value.ndim) + value.shape
    if value.size != 1 and shape != (1, channels, *(1,) * (rank - 2)):
        return None
    return np.broadcast_to(value.astype(np.float64).ravel(), (channels,))


def _fold(model: onnx.ModelProto, graph: Graph, layer: onnx.NodeProto, step: onnx.NodeProto, value: Array) -> None:
    stored = graph.constants[layer.input[1]]
    weight = numpy_helper.to_array(stored).astype(np.float64)
    has_bias = len(layer.input) > 2 and bool(layer.input[2])
    bias = graph.value(layer.input[2]) if has_bias else None
    shift = np.zeros(len(value)) if bias is None else np.asarray(bias, np.float64)
    if step.op_type in ("Mul", "Div"):
        gain = value if step.op_type == "Mul" else 1 / value
        weight, shift = _scaled(layer, weight, gain), shift * gain
    else:
        shift = shift + (value if step.op_type == "Add" else -value)
    kind = onnx.helper.tensor_dtype_to_np_dtype(stored.data_type)
    names = []
    for word, new in (("weight", weight), ("bias", shift)):
        if word == "weight" and step.op_type in ("Add", "Sub"):
            names.append(layer.input[1])
            continue
        names.append(_free(model, f"{layer.name or layer.output[0]}.folded_{word}"))
        model.graph.initializer.append(numpy_helper.from_array(new.astype(kind), names[-1]))
    del layer.input[1:]
    layer.input.extend(names)
    layer.output[0] = step.output[0]
    model.graph.node.remove(step)
    used = {name for node in model.graph.node for name in node.input} | _inner(model)
    used |= {item.name for item in (*model.graph.output, *model.graph.input)}
    for item in [item for item in model.graph.initializer if item.name not in used]:
        model.graph.initializer.remove(item)


def _scaled(layer: onnx.NodeProto, weight: Array, gain: Array) -> Array:
    """Return a weight whose output channels are multiplied."""
    if layer.op_type == "Conv":
        return np.asarray(weight * gain.reshape(-1, *[1] * (weight.ndim - 1)))
    groups = len(gain) // weight.shape[1]
    gains = gain.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    return np.asarray((weight.reshape(groups, -1, *weight.shape[1:]) * gains).reshape(weight.shape))


def _free(model: onnx.ModelProto, stem: str) -> str:
    taken = {item.name for item in model.graph.initializer} | {
        name for node in model.graph.node for name in node.output
    }
    return free_name(stem, taken)


def _inner(model: onnx.ModelProto) -> set[str]:
    """Return the names that bodies of If, Loop and Scan read or return."""
    found: set[str] = set()
    pending = [item.g for node in model.graph.node for item in node.attribute if item.HasField("g")]
    while pending:
        graph = pending.pop()
        found.update(item.name for item in graph.output)
        for node in graph.node:
            found.update(node.input)
            pending.extend(item.g for item in node.attribute if item.HasField("g"))
    return found
