"""An int8 layer of the placed graph: its weight, and its bias, as the target wants them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from repo_builder.core.errors import QuantizeError
from repo_builder.core.graphs import DQ, Q, own
from repo_builder.core.tensors import Array
from repo_builder.quantize.placement.choose import Choice, bias_add
from repo_builder.quantize.placement.codes import Codes
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.placement.table import Profile
from repo_builder.quantize.placement.weights import Weights, weights_of
from repo_builder.quantize.placement.writer import Writer
from repo_builder.quantize.ranges import WeightRange


def write_layer(
    out: Writer,
    choice: Choice,
    place: int,
    node: onnx.NodeProto,
    codes: Mapping[str, Codes],
    ranges: Mapping[str, WeightRange],
    profile: Profile,
) -> None:
    """Append an int8 layer with its weight and bias as the target wants them; ``node`` is its copy, reads in place."""
    index, layer = choice.index, choice.layers.plans[place].name
    behind = bias_add(index, place) if profile.fuses_bias else None
    added = _constant_of(index, behind) if behind is not None else None
    if layer not in ranges:
        raise QuantizeError("there is no range of its weight", where=layer)
    step = float(codes[index.nodes[place].input[0]].scale) if profile.stored_codes else None
    found = weights_of(
        index,
        index.nodes[place],
        ranges[layer],
        steps=profile.weight_steps,
        step=step,
        layer=layer,
        added=added,
    )
    stem = node.name or layer
    if node.op_type == "Gemm":
        kept = [item for item in node.attribute if item.name not in ("alpha", "beta")]
        del node.attribute[:]
        node.attribute.extend(kept)
    if profile.stored_codes:
        node.input[1] = out.dequantized(f"{stem}/weight", found.codes(profile.weight_steps), found.scale, found.axis)
    else:
        node.input[1] = _float_weight(out, node, found, stem, profile.weight_steps)
    if node.op_type == "MatMul" and behind is None:
        out.nodes.append(node)
        _add_shift(out, choice, place, node, found.bias, stem)
        return
    bias = _bias(out, found, stem, step)
    if behind is not None:
        out.biases[behind] = bias
    else:
        del node.input[2:]
        node.input.extend([bias] if bias else [])
    out.nodes.append(node)
    if found.rest is not None:
        _add_rest(out, index, node, found.rest, stem)


def _float_weight(out: Writer, node: onnx.NodeProto, found: Weights, stem: str, steps: int) -> str:
    """Append Q/DQ behind a float weight; a linear layer's is stored (outputs, inputs), so that its axis is 0."""
    weight, axis, turned = found.on_grid(steps), found.axis, node.op_type == "MatMul"
    if node.op_type == "Gemm":
        straight = any(item.name == "transB" and item.i for item in node.attribute)
        kept = [item for item in node.attribute if item.name != "transB"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("transB", 1)])
        weight = weight if straight else weight.T
    if turned:
        weight = weight.T
    if node.op_type in ("MatMul", "Gemm") and axis is not None:
        axis = 0
    settings = [
        out.constant(f"{stem}/weight/scale", found.scale),
        out.constant(f"{stem}/weight/zero", np.zeros(found.scale.shape, np.int8)),
    ]
    more: dict[str, int | list[int]] = {} if axis is None else {"axis": axis}
    tensor = out.constant(f"{stem}/weight", weight)
    for kind in (Q, DQ):
        tensor = out.node(kind, [tensor, *settings], out.name(f"{stem}/weight/{kind}"), f"{stem}/weight/{kind}", **more)
    if turned:
        tensor = out.node(
            "Transpose", [tensor], out.name(f"{stem}/weight/turned"), f"{stem}/weight/Transpose", perm=[1, 0]
        )
    return tensor


def _bias(out: Writer, found: Weights, stem: str, step: float | None) -> str:
    """Append a layer's bias: int32 codes where ``step`` is the input's scale, float32 otherwise, or none."""
    if found.bias is None:
        return ""
    if step is None:
        return out.constant(f"{stem}/bias", found.bias.astype(np.float32))
    scale = np.asarray(np.float32(step) * found.scale, np.float32)
    if scale.ndim:  # a transposed convolution in groups has one weight scale for a channel of every group
        scale = np.tile(scale, found.bias.size // scale.size)
    steps = np.rint(found.bias / scale.astype(np.float64))
    return out.dequantized(f"{stem}/bias", steps.astype(np.int32), scale, None if found.axis is None else 0)


def _constant_of(index: Index, place: int) -> Array | None:
    return next((index.value(name) for name in index.nodes[place].input if index.constant(name)), None)


def _add_rest(out: Writer, index: Index, node: onnx.NodeProto, rest: tuple[str, float], stem: str) -> None:
    """Add a Gemm's bias of an odd shape behind it."""
    name, factor = rest
    value = index.value(name)
    if value is not None:
        name = out.constant(f"{stem}/bias", (value * np.float32(factor)).astype(np.float32))
    elif factor != 1:
        weight = out.constant(f"{stem}/beta", np.asarray(factor, np.float32))
        name = out.node("Mul", [name, weight], out.name(f"{stem}/bias/scaled"), f"{stem}/bias/Mul")
    final = node.output[0]
    node.output[0] = out.name(f"{final}/product")
    out.node("Add", [node.output[0], name], final, f"{stem}/bias/Add")


def _add_shift(out: Writer, choice: Choice, place: int, node: onnx.NodeProto, shift: Array | None, stem: str) -> None:
    """Add to a MatMul's product what a repair shifts it by: in the constant that is added to it, or else behind it."""
    if shift is None:
        return
    index, tensor = choice.index, choice.index.nodes[place].output[0]
    readers = index.readers[tensor]
    alone = len(readers) == 1 and tensor not in index.outputs | index.inner and readers[0] not in choice.glue
    added = index.nodes[readers[0]] if alone else None
    value = _constant_of(index, readers[0]) if added is not None and added.op_type == "Add" and own(added) else None
    if value is not None and value.shape in ((), (1,), shift.shape):
        out.biases[readers[0]] = out.constant(f"{stem}/bias", (value + shift).astype(np.float32))
        return
    final = node.output[0]
    node.output[0] = out.name(f"{final}/product")
    shifted = out.constant(f"{stem}/shift", shift.astype(np.float32))
    out.node("Add", [node.output[0], shifted], final, f"{stem}/shift/Add")


def write_bias(out: Writer, index: Index, place: int, node: onnx.NodeProto) -> None:
    """Give an Add the bias of the MatMul before it as codes, where both become one operator."""
    if place in out.biases:
        constant = next(at for at, name in enumerate(index.nodes[place].input) if index.constant(name))
        node.input[constant] = out.biases[place]
