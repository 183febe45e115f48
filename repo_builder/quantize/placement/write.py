"""The placed graph: Q/DQ pairs, layers with quantized constants, and readers pointed at the right side of a pair."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from repo_builder.core.errors import QuantizeError
from repo_builder.core.graphs import DQ, Q
from repo_builder.core.tensors import Array
from repo_builder.quantize.placement.choose import CLIPS, Choice, bias_add
from repo_builder.quantize.placement.codes import Codes, codes_for
from repo_builder.quantize.placement.index import Index, own, reads, subgraphs
from repo_builder.quantize.placement.lower import factor, lower, reciprocal
from repo_builder.quantize.placement.table import Glue, Profile
from repo_builder.quantize.placement.weights import Weights, weights_of
from repo_builder.quantize.placement.writer import Writer
from repo_builder.quantize.ranges import WeightRange

_GUARDED = frozenset({"Conv", "ConvTranspose", "Gemm"})
_LOWEST = np.float32(np.finfo(np.float32).min)


def write(
    model: onnx.ModelProto,
    choice: Choice,
    codes: Mapping[str, Codes],
    weights: Mapping[str, WeightRange],
    profile: Profile,
) -> onnx.ModelProto:
    """Return the graph with Q/DQ.

    Args:
        model: The fp32 graph; it is not changed.
        choice: Where Q/DQ stands.
        codes: Chosen tensor → its codes.
        weights: Layer → the range of its weight.
        profile: The target's table.

    Raises:
        QuantizeError: A layer has no weight range, or one that does not fit.
    """
    index, codes = choice.index, dict(codes)
    out = Writer(index.names())
    raw, read = _names(out, choice)
    for tensor in index.inputs:
        if tensor in codes:
            out.codes[tensor] = out.pair(tensor, read[tensor], codes[tensor], tensor)
    for place, node in enumerate(index.nodes):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        through = set(choice.int8_reads(place))
        for position, tensor in enumerate(node.input):
            if tensor in read and (tensor in choice.made or tensor in through):
                copy.input[position] = read[tensor]
        for position, tensor in enumerate(node.output):
            copy.output[position] = raw.get(tensor, tensor)
        before = None
        if place in choice.layers.int8:
            _layer(out, choice, place, copy, codes, weights, profile)
        elif place in choice.glue:
            before = _glue(out, choice, place, copy, codes)
        else:
            _bias_of_matmul(out, index, place, copy)
            out.nodes.append(copy)
        _guard(out, choice, place, copy, codes, profile)
        for tensor in node.output:
            if tensor in read:
                source = raw.get(tensor, tensor)
                out.codes[tensor] = out.pair(source, read[tensor], codes[tensor], tensor, quantized=before)
    return _assembled(model, index, out)


def _names(out: Writer, choice: Choice) -> tuple[dict[str, str], dict[str, str]]:
    """Return how the values before Q are called where they cannot keep their name, and those behind DQ.

    The values behind DQ take a tensor's own name where the graph's output or a subgraph reads it by that name.
    """
    index, raw, read = choice.index, {}, {}
    for tensor in choice.tensors:
        kept = tensor in index.outputs or tensor in index.inner
        form = choice.glue.get(index.makers.get(tensor, -1))
        if form is not None and form.lowered == "hard sigmoid":
            raw[tensor] = out.name(f"{tensor}/sum")
        if kept and tensor in choice.made:
            raw.setdefault(tensor, out.name(f"{tensor}/original"))
            read[tensor] = tensor
        else:
            read[tensor] = out.name(f"{tensor}/dequantized")
    return raw, read


def _layer(
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
        ranges[layer].amax,
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
        node.input[1] = _float_weight(out, node, found, stem)
    bias = _bias(out, found, stem, step)
    if behind is not None:
        out.biases[behind] = bias
    elif node.op_type != "MatMul":
        del node.input[2:]
        node.input.extend([bias] if bias else [])
    out.nodes.append(node)
    if found.rest is not None:
        _add_rest(out, index, node, found.rest, stem)


def _float_weight(out: Writer, node: onnx.NodeProto, found: Weights, stem: str) -> str:
    """Append Q/DQ behind a float weight; a linear layer's is stored (outputs, inputs), so that its axis is 0."""
    weight, axis, turned = found.weight, found.axis, node.op_type == "MatMul"
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


def _bias_of_matmul(out: Writer, index: Index, place: int, node: onnx.NodeProto) -> None:
    """Give an Add the bias of the MatMul before it as codes, where both become one operator."""
    if place in out.biases:
        constant = next(at for at, name in enumerate(index.nodes[place].input) if index.constant(name))
        node.input[constant] = out.biases[place]


def _glue(out: Writer, choice: Choice, place: int, node: onnx.NodeProto, codes: dict[str, Codes]) -> Codes | None:
    """Append a glue node, and return the codes of the Q behind it where they are not those of its DQ."""
    form, output = choice.glue[place], choice.index.nodes[place].output[0]
    if form.lowered == "rescale":
        _rescale(out, choice, place, codes)
        return None
    if form.lowered in ("hard sigmoid", "hard swish") and output in codes:
        return lower(out, node, form.lowered, codes[output])
    if form.constants:
        _operand_codes(out, choice.index, place, node, form)
    if form.lowered == "reciprocal":
        node.op_type = "Mul"
    out.nodes.append(node)
    return None


def _rescale(out: Writer, choice: Choice, place: int, codes: dict[str, Codes]) -> None:
    """Append the DequantizeLinear that a product with one constant is, and note its codes."""
    index, node = choice.index, choice.index.nodes[place]
    (tensor,), output, times = choice.int8_reads(place), node.output[0], factor(index, node)
    assert times is not None  # noqa: S101 - the table gives no other node this form
    codes[output] = codes[tensor].times(times)
    out.codes[output] = out.codes[tensor]
    settings = [
        out.constant(f"{output}/scale", np.asarray(codes[output].scale)),
        out.constant(f"{output}/zero", codes[output].zero),
    ]
    out.nodes.append(helper.make_node(DQ, [out.codes[tensor], *settings], [output], node.name))


def _operand_codes(out: Writer, index: Index, place: int, node: onnx.NodeProto, form: Glue) -> None:
    """Store a glue node's constant operands as codes over all that they hold."""
    for position, name in enumerate(index.nodes[place].input):
        value = index.value(name) if name else None
        if form.operands != "all" or value is None or value.dtype != np.float32 or value.size == 0:
            continue
        if form.lowered == "reciprocal":
            value = reciprocal(value)
        low, high = float(value.min()), float(value.max())
        codes = codes_for(low, high, max(abs(low), abs(high)), "uint8")
        stem = f"{node.name or node.output[0]}/{position}"
        node.input[position] = out.dequantized(stem, codes.of(value), np.asarray(codes.scale), None, codes.zero)


def _guard(
    out: Writer, choice: Choice, place: int, node: onnx.NodeProto, codes: Mapping[str, Codes], profile: Profile
) -> None:
    """Put a node that changes nothing between a float layer and the Q behind it.

    ONNX Runtime's WeightBiasQuantization makes a float Conv, ConvTranspose or Gemm between DQ and Q int8, per tensor.
    """
    index = choice.index
    original = index.nodes[place]
    if not profile.guard_float or place in choice.layers.int8 or original.op_type not in _GUARDED or not own(original):
        return
    plan = choice.layers.plans.get(place)
    if (plan is not None and plan.precision == "fp16") or original.input[0] not in choice.made & set(codes):
        return  # a Cast will stand in front of it, or no DQ does
    reached, pending = False, [original.output[0]]
    while pending:
        tensor = pending.pop()
        reached = reached or tensor in codes
        pending.extend(
            index.nodes[item].output[0] for item in index.readers[tensor] if index.nodes[item].op_type in CLIPS
        )
    if reached:
        final, node.output[0] = node.output[0], out.name(f"{node.output[0]}/unguarded")
        lowest = out.constant("lowest_float", np.asarray(_LOWEST))
        out.node("Max", [node.output[0], lowest], final, f"{original.name or original.output[0]}/Max")


def _assembled(model: onnx.ModelProto, index: Index, out: Writer) -> onnx.ModelProto:
    """Return a model like another with a writer's nodes; initializers that nothing reads any more are left out."""
    result = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            getattr(result, field.name).MergeFrom(value) if field.message_type else setattr(result, field.name, value)
    for field, value in model.graph.ListFields():
        if field.name in ("node", "initializer", "value_info"):
            continue
        if field.message_type:
            getattr(result.graph, field.name).MergeFrom(value)
        else:
            setattr(result.graph, field.name, value)
    result.graph.node.extend(_needed(out.nodes, index))
    used = {*reads(result.graph), *(item.name for item in model.graph.input)}
    stored = (*model.graph.initializer, *out.initializers)
    result.graph.initializer.extend(item for item in stored if item.name in used)
    return result


def _needed(nodes: list[onnx.NodeProto], index: Index) -> list[onnx.NodeProto]:
    """Return the nodes but for those that computed constants, as a float weight, that nothing reads any more."""
    needed, kept = set(index.outputs), []
    for node in reversed(nodes):
        if any(name in needed or not index.constant(name) for name in node.output):
            kept.append(node)
            needed.update(node.input)
            for graph in subgraphs(node):
                needed.update(reads(graph))
    return kept[::-1]
