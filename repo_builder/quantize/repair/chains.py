"""Pairs of layers with nothing between them that minds a channel's size, for equalisation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from repo_builder.core.graphs import attribute, own
from repo_builder.quantize.placement.choose import folds
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.repair.linear import Layer

# f(s·v) = s·f(v) for s > 0, channel by channel
_HOMOGENEOUS = frozenset({
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Identity",
    "LeakyRelu",
    "MaxPool",
    "PRelu",
    "Relu",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two layers, and what stands between them.

    Attributes:
        first: The layer before.
        second: The layer behind.
        added: Place of the Add that is a MatMul's bias; None where there is none.
        clips: Places of Clips with an upper bound between them.
        repeats: Inputs of the second layer that one channel of the first makes (Flatten).
    """

    first: Layer
    second: Layer
    added: int | None
    clips: tuple[int, ...]
    repeats: int


def pairs(index: Index, known: Mapping[int, Layer]) -> Iterator[Pair]:
    """Yield the pairs of a graph of which one layer is to be int8 and none fp16.

    What stands between the two is read by nothing else: no other node, no output of the graph, no subgraph.
    """
    for first in known.values():
        found = _pair(index, known, first)
        if found is not None:
            precisions = {first.plan.precision, found.second.plan.precision}
            fits = found.second.inputs == first.outputs * found.repeats
            if fits and "int8" in precisions and "fp16" not in precisions:
                yield found


def _pair(index: Index, known: Mapping[int, Layer], first: Layer) -> Pair | None:
    """Follow what a layer makes to the layer that reads it."""
    tensor, added, repeats = first.node.output[0], None, 1
    clips: list[int] = []
    while tensor not in index.outputs | index.inner and len(index.readers[tensor]) == 1:
        place = index.readers[tensor][0]
        node = index.nodes[place]
        if list(node.input).count(tensor) != 1 or not own(node) or len(node.output) != 1:
            return None
        if place in known:
            if node.input[0] != tensor:
                return None
            return Pair(first=first, second=known[place], added=added, clips=tuple(clips), repeats=repeats)
        if node.op_type == "Add" and tensor == first.node.output[0] and is_bias(index, node, first):
            added = place
        elif node.op_type == "Flatten" and first.node.op_type == "Conv" and attribute(node, "axis", 1) == 1:
            sides = index.shapes.get(tensor, (None, None, None))[2:]
            if None in sides:
                return None
            repeats = int(np.prod([side or 1 for side in sides]))
        elif node.input[0] == tensor and _passes(index, node):
            clips += [place] * (node.op_type == "Clip" and _bounded(node))
        else:
            return None
        tensor = node.output[0]
    return None


def _passes(index: Index, node: onnx.NodeProto) -> bool:
    """Whether a node's output grows as its input does, channel by channel; a Clip that starts at 0 nearly does."""
    if node.op_type == "Clip":
        return folds(index, node)
    return node.op_type in _HOMOGENEOUS and all(index.constant(name) for name in node.input[1:])


def is_bias(index: Index, node: onnx.NodeProto, first: Layer) -> bool:
    """Whether an Add adds one constant a channel to what a MatMul makes."""
    value = next((index.value(name) for name in node.input if name and index.constant(name)), None)
    shapes = ((first.outputs,), (1, first.outputs))
    return first.node.op_type == "MatMul" and value is not None and value.dtype == np.float32 and value.shape in shapes


def _bounded(node: onnx.NodeProto) -> bool:
    """Whether a Clip has an upper bound."""
    return any(item.name == "max" for item in node.attribute) or (len(node.input) > 2 and bool(node.input[2]))
