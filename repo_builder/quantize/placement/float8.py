"""Layers in fp8: their input and weight through QuantizeLinear and DequantizeLinear of E4M3 codes, their output float.

    y = layer(DQ(Q(x, scale)), DQ(codes, scales)) + bias

They are float to the rest of placement: they read and make float values, so that no int8 neighbour depends on them. A
tensor has one pair for all fp8 layers that read it. A bias, a Gemm's alpha and beta stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from repo_builder.core.errors import QuantizeError
from repo_builder.core.graphs import DQ, Q, layer_of, own, with_nodes
from repo_builder.core.precisions import PRECISIONS
from repo_builder.core.tensors import Array
from repo_builder.quantize import e4m3
from repo_builder.quantize.placement.codes import LEAST_SCALE
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.placement.layers import NO_NODE, NO_RANGE, is_product
from repo_builder.quantize.placement.table import Profile
from repo_builder.quantize.placement.weights import channel_axis
from repo_builder.quantize.placement.writer import Writer
from repo_builder.quantize.ranges import Ranges, TensorRange
from repo_builder.quantize.rules import LayerPlan

_KIND = PRECISIONS["fp8"]
_HINT = "leave the layer in fp32"


@dataclass(frozen=True, kw_only=True)
class Float8:
    """The layers that are to be fp8.

    Attributes:
        why_not: Layer → why it cannot be; an empty text where it can.
        reads: Layer that can be → the tensors of the fp32 graph that it reads as codes.
    """

    why_not: Mapping[str, str]
    reads: Mapping[str, tuple[str, ...]]


def find_float8(index: Index, plans: Sequence[LayerPlan], profile: Profile) -> Float8:
    """Match plans with nodes.

    Args:
        index: The graph.
        plans: What each layer is to become.
        profile: The target.
    """
    why_not: dict[str, str] = {}
    reads: dict[str, tuple[str, ...]] = {}
    for item in plans:
        if item.precision != "fp8":
            continue
        nodes = [node for node in index.nodes if own(node) and layer_of(node) == item.name]
        said = [_why_not(index, node, profile) for node in nodes]
        why_not[item.name] = next(filter(None, said), "" if nodes else NO_NODE)
        if not why_not[item.name]:
            reads[item.name] = tuple(dict.fromkeys(name for node in nodes for name in _activations(index, node)))
    return Float8(why_not=why_not, reads=reads)


def without_ranges(found: Float8, ranges: Mapping[str, TensorRange]) -> Float8:
    """Return the same without layers whose input nothing reached in calibration."""
    lost = {name: NO_RANGE for name, reads in found.reads.items() if not all(item in ranges for item in reads)}
    reads = {name: item for name, item in found.reads.items() if name not in lost}
    return Float8(why_not={**found.why_not, **lost}, reads=reads)


def _why_not(index: Index, node: onnx.NodeProto, profile: Profile) -> str:
    """Return why a node cannot be fp8, an empty text where it can."""
    if node.op_type not in profile.float8:
        return f"{profile.name} has no fp8 {node.op_type}"
    form = profile.float8[node.op_type]
    if form.why_not:
        return form.why_not
    if node.input[0] not in index.floats:
        return "its input is constant or no float32 tensor"
    if is_product(index, node):
        return ""
    weight = index.value(node.input[1])
    if weight is None:
        return "its weight is no constant"
    if weight.dtype != np.float32:
        return f"its weight is {weight.dtype}; fp8 starts from float32"
    if not weight.size or (node.op_type in ("MatMul", "Gemm") and weight.ndim != 2):
        return f"its weight has the shape {list(weight.shape)}"
    kernel = weight.shape[2:]
    if form.largest_kernel is not None and math.prod(kernel) > form.largest_kernel:
        return f"{profile.name} has no fp8 {node.op_type} of a kernel of {' x '.join(map(str, kernel))}"
    return ""


def _activations(index: Index, node: onnx.NodeProto) -> tuple[str, ...]:
    return tuple(node.input[: 2 if is_product(index, node) else 1])


def rewrite(placed: onnx.ModelProto, index: Index, found: Float8, ranges: Ranges, profile: Profile) -> onnx.ModelProto:
    """Return a placed graph with these layers in fp8.

    Args:
        placed: The graph, with these layers in float, of an operator set whose Q/DQ takes E4M3.
        index: The fp32 graph.
        found: The layers.
        ranges: The ranges of what they read, and of their weights.
        profile: The target's table.

    Raises:
        QuantizeError: A layer has no weight range, or a range that leaves no scale.
    """
    originals = {node.name: node for node in index.nodes if own(node) and layer_of(node) in found.reads}
    out = Writer(Index(placed).names())
    pairs: dict[str, str] = {}
    for node in placed.graph.node:
        layer, original = layer_of(node) or "", originals.get(node.name)
        if original is None or layer not in found.reads:
            out.nodes.append(node)
            continue
        for place, name in enumerate(_activations(index, original)):
            tensor = node.input[place]
            if tensor not in pairs:
                before = out.guarded(tensor) if profile.guard_float else tensor
                pairs[tensor] = _pair(out, tensor, before, _input_scale(ranges.tensors[name], layer))
            node.input[place] = pairs[tensor]
        if not is_product(index, original):
            node.input[1] = _weight(out, index, original, ranges, layer)
        out.nodes.append(node)
    return with_nodes(placed, out.nodes, out.initializers)


def _pair(out: Writer, tensor: str, before: str, scale: Array) -> str:
    """Append Q/DQ behind a tensor, read as ``before``, and return what the layers read."""
    settings = [out.constant(f"{tensor}/fp8/scale", scale), out.stored(f"{tensor}/fp8/zero", np.zeros((), np.uint8))]
    codes = out.node(Q, [before, *settings], out.name(f"{tensor}/fp8/codes"), f"{tensor}/fp8/{Q}")
    return out.node(DQ, [codes, *settings], out.name(f"{tensor}/fp8/dequantized"), f"{tensor}/fp8/{DQ}")


def _input_scale(found: TensorRange, layer: str) -> Array:
    if not math.isfinite(found.amax):
        raise QuantizeError("its input is not finite on calibration data", where=layer, hint=_HINT)
    if found.amax == 0:
        text = "its input is zero in every calibration sample, which leaves no range for fp8"
        raise QuantizeError(text, where=layer, hint=f"{_HINT}, or calibrate on more samples")
    if found.amax / _KIND.largest < LEAST_SCALE:
        text = f"its input never exceeds {found.amax:.1e}, too little for a scale"
        raise QuantizeError(text, where=layer, hint=_HINT)
    return np.asarray(found.amax / _KIND.largest, np.float32)


def _weight(out: Writer, index: Index, node: onnx.NodeProto, ranges: Ranges, layer: str) -> str:
    """Append a weight's stored codes behind DequantizeLinear and return what the layer reads."""
    weight, axis = np.asarray(index.value(node.input[1]), np.float32), channel_axis(node)
    if layer not in ranges.weights:
        raise QuantizeError("there is no range of its weight", where=layer)
    amax = np.abs(np.asarray(ranges.weights[layer].amax, np.float64))
    if amax.shape not in ((), (weight.shape[axis],)):
        raise QuantizeError(f"its weight has {weight.shape[axis]} channels and {amax.size} ranges", where=layer)
    if not np.isfinite(amax).all() or not np.isfinite(weight).all():
        raise QuantizeError("its weight is not finite", where=layer, hint=_HINT)
    steps = amax / _KIND.largest
    if 0 < steps.max() < LEAST_SCALE:
        raise QuantizeError(f"its weight never exceeds {amax.max():.1e}, too little for a scale", where=layer)
    # A channel of zeros is exact with any scale; the largest of the layer keeps all in one order of magnitude.
    scale = np.where(steps >= LEAST_SCALE, steps, steps.max() or 1.0).astype(np.float32)
    along = scale.reshape([-1 if place == axis else 1 for place in range(weight.ndim)]) if scale.ndim else scale
    stem = f"{node.name or layer}/fp8/weight"
    settings = [out.constant(f"{stem}/scale", scale), out.stored(f"{stem}/zero", np.zeros(scale.shape, np.uint8))]
    more = {"axis": axis} if scale.ndim else {}
    codes = out.stored(f"{stem}/codes", e4m3.codes(weight, along))
    return out.node(DQ, [codes, *settings], out.name(f"{stem}/dequantized"), f"{stem}/{DQ}", **more)
