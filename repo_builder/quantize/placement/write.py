"""The placed graph: Q/DQ pairs, layers with quantized constants, and readers pointed at the right side of a pair."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper

from repo_builder.core.graphs import DQ, Q, outer_reads, own, with_nodes
from repo_builder.quantize.placement.choose import CLIPS, Choice
from repo_builder.quantize.placement.codes import Codes, codes_for
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.placement.lower import factor, gate, gated, lower, reciprocal, reinterpret
from repo_builder.quantize.placement.table import Glue, Profile
from repo_builder.quantize.placement.write_layer import write_bias, write_layer
from repo_builder.quantize.placement.writer import Writer
from repo_builder.quantize.ranges import WeightRange

_GUARDED = frozenset({"Conv", "ConvTranspose", "Gemm"})


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
            write_layer(out, choice, place, copy, codes, weights, profile)
        elif place in choice.glue:
            before = _glue(out, choice, place, copy, codes, read)
        else:
            write_bias(out, index, place, copy)
            out.nodes.append(copy)
        _guard(out, choice, place, copy, codes, profile)
        for tensor in node.output:
            if tensor in read and tensor not in out.codes:
                source = raw.get(tensor, tensor)
                out.codes[tensor] = out.pair(source, read[tensor], codes[tensor], tensor, quantized=before)
    # a layer that the model itself leaves unread is int8 as others are
    unread = {read[tensor] for tensor in choice.tensors if not index.readers[tensor]}
    return with_nodes(model, _needed(out.nodes, index, unread), out.initializers)


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


def _glue(
    out: Writer, choice: Choice, place: int, node: onnx.NodeProto, codes: dict[str, Codes], read: Mapping[str, str]
) -> Codes | None:
    """Append a glue node, and return the codes of the Q behind it where they are not those of its DQ."""
    form, output = choice.glue[place], choice.index.nodes[place].output[0]
    if form.lowered == "rescale":
        _rescale(out, choice, place, codes)
        return None
    if form.lowered in ("hard sigmoid", "hard swish") and output in codes:
        tensor = choice.index.nodes[place].input[0]
        if form.lowered == "hard sigmoid" and gated(codes[tensor], gate(node)) == codes[output]:
            found = reinterpret(out, node, tensor, codes[tensor], read[output])
            assert found is not None  # noqa: S101 - ``gated`` has said that the codes do
            out.codes[output] = found
            return None
        return lower(out, node, form.lowered, tensor, codes[tensor], codes[output])
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
    """Give a float layer's output a reader besides the Q behind it: its shape, which nobody reads.

    ONNX Runtime's WeightBiasQuantization makes a float Conv, ConvTranspose or Gemm between DQ and Q int8, per tensor,
    where nothing else reads its output. It moves DQ and Q over what hands values on as they are, as MaxPool and
    Reshape do, before it looks. A node between them that changes nothing costs a pass over the tensor, 4 % of a U-Net.
    """
    index = choice.index
    original = index.nodes[place]
    moves = {kind for kind, form in profile.glue.items() if form.one_scale}
    if not profile.guard_float or place in choice.layers.int8 or original.op_type not in _GUARDED or not own(original):
        return
    plan = choice.layers.plans.get(place)
    given = original.input[0]
    while given not in codes and given in index.makers and index.nodes[index.makers[given]].op_type in moves:
        given = index.nodes[index.makers[given]].input[0]
    if (plan is not None and plan.precision == "fp16") or given not in choice.made & set(codes):
        return  # a Cast will stand in front of it, or no DQ does
    reached, pending = False, [original.output[0]]
    while pending:
        tensor = pending.pop()
        reached = reached or tensor in codes
        pending.extend(
            index.nodes[item].output[0] for item in index.readers[tensor] if index.nodes[item].op_type in CLIPS | moves
        )
    if reached:
        stem = original.name or original.output[0]
        out.node("Shape", [node.output[0]], out.name(f"{node.output[0]}/shape"), f"{stem}/Shape")


def _needed(nodes: list[onnx.NodeProto], index: Index, also: Collection[str]) -> list[onnx.NodeProto]:
    """Return the nodes but for Q, DQ and what computes constants, as a float weight, that nothing reads any more.

    ONNX Runtime runs what nobody reads: the pairs of a product that became another step of its input's codes, and of
    hard swishes, took a third of PP-OCR's recogniser. A float node that nobody reads is the model's own, and stays.
    """
    needed, kept = {*index.outputs, *also}, []
    for node in reversed(nodes):
        own = node.op_type not in (Q, DQ) and not all(index.constant(name) for name in node.output)
        if own or needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
            needed.update(outer_reads(node))
    return kept[::-1]
