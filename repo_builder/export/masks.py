"""Masks of attention in fp16: where a constant that fp16 cannot hold, as -1e9, may stand as -inf without a change.

Softmax in fp32 makes exactly 0 of an entry that lies ``_GAP`` under another of its row, and of -inf. A sum with a mask
in fp16 is that far down for any finite scores where the mask is; so -inf gives the same numbers bit for bit. A row that
is masked as a whole is the exception: Softmax spreads it evenly with -1e9 and makes NaN of it with -inf. Where such a
row cannot be excluded the node stays fp32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx

from repo_builder.core.graphs import Graph, attribute, own
from repo_builder.core.tensors import Array

LARGEST = float(np.finfo(np.float16).max)
# Scores of ±65504 are 131008 apart at most, and exp(-104) is 0 in fp32; the rest is for the rounding of the sum.
_GAP = 2 * LARGEST + 104 + 64


def why_no_infinity(
    graph: Graph, node: onnx.NodeProto, name: str, kept: Collection[str], ranks: Mapping[str, int]
) -> str:
    """Return why -inf cannot stand for what fp16 cannot hold in a node's constant; an empty text where it can.

    Args:
        graph: The graph around the node.
        node: What reads the constant: a sum or difference with it, or Where.
        name: The constant.
        kept: Tensors that are read by name from elsewhere, as outputs are.
        ranks: Tensor → the number of its axes, where it is known.
    """
    mask = _mask(graph, node, name)
    if mask is None:
        return "it is no constant mask"
    readers = graph.consumers[node.output[0]]
    if node.output[0] in kept or not readers or any(item.op_type != "Softmax" or not own(item) for item in readers):
        return "not Softmax alone reads the sum"
    for reader in readers:
        axis = int(attribute(reader, "axis", -1))
        if axis not in (-1, ranks.get(node.output[0], 0) - 1):
            return f"its Softmax goes along axis {axis}"
    return _why_rows_differ(mask)


def as_half(value: Array) -> Array:
    """Return a constant in fp16; what is beyond it becomes infinite."""
    with np.errstate(over="ignore"):
        return value.astype(np.float16)


def _mask(graph: Graph, node: onnx.NodeProto, name: str) -> Array | None:
    """Return what a node adds to its other input, float64 and 0 where it leaves that as it is; None for no mask."""
    value = graph.value(name)
    if value is None or not own(node) or list(node.input).count(name) != 1:
        return None
    wide, place = value.astype(np.float64), list(node.input).index(name)
    if node.op_type == "Add":
        return wide
    if node.op_type == "Sub" and place == 1:
        return -wide
    chosen = graph.value(node.input[0]) if node.op_type == "Where" else None
    if chosen is None or place == 0:
        return None
    there = chosen.astype(bool) if place == 1 else ~chosen.astype(bool)
    return np.where(there, wide, 0.0)


def _why_rows_differ(mask: Array) -> str:
    """Return why Softmax along the last axis would make other numbers with -inf; an empty text where it does not."""
    if mask.ndim == 0 or mask.shape[-1] == 1 or mask.size == 0:
        return "it is one number for a row, and a row that is masked as a whole would become NaN"
    beyond = mask < -LARGEST
    if (mask > LARGEST).any() or np.isnan(mask).any():
        return "it is no mask: it adds more than fp16 holds"
    best = np.where(beyond, -np.inf, mask).max(axis=-1, keepdims=True)
    if not np.isfinite(best).all():
        return "a row is masked as a whole, and -inf would make NaN of it"
    if (beyond & np.isfinite(mask) & (mask > best - _GAP)).any():
        return "Softmax would not make 0 of it for all scores"
    return ""
