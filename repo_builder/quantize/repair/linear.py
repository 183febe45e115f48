"""Layers with a constant weight as repairs see them: one node, its weight as rows, and new constants for it alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from repo_builder.core.graphs import attribute, drop_unused, free_name, layer_of, own
from repo_builder.core.tensors import Array
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.rules import LayerPlan

_KINDS = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer that one node computes, with a weight that is its own to change.

    Attributes:
        place: The node's place in the graph.
        node: The node.
        plan: What the layer is to become.
        weight: float32, as it is stored.
        output_axis: The axis of the weight that counts output channels.
        input_axis: The axis that counts input channels (of one group).
        groups: Groups of a convolution.
    """

    place: int
    node: onnx.NodeProto
    plan: LayerPlan
    weight: Array
    output_axis: int
    input_axis: int
    groups: int

    @property
    def outputs(self) -> int:
        """Output channels."""
        return int(self.weight.shape[self.output_axis])

    @property
    def inputs(self) -> int:
        """Input channels, of all groups."""
        return int(self.weight.shape[self.input_axis]) * self.groups

    @property
    def positive(self) -> bool:
        """Whether the weight's codes have its signs: a Gemm's ``alpha`` below 0 turns them."""
        return self.node.op_type != "Gemm" or attribute(self.node, "alpha", 1) > 0

    @property
    def channel_axis(self) -> int:
        """The axis of its input and output that counts channels."""
        return 1 if self.node.op_type == "Conv" else -1

    def along_outputs(self, factors: Array) -> Array:
        """Return one factor an output channel, shaped to multiply the weight."""
        return factors.reshape([-1 if axis == self.output_axis else 1 for axis in range(self.weight.ndim)])

    def along_inputs(self, factors: Array) -> Array:
        """Return one factor an input channel, shaped to multiply the weight."""
        if self.node.op_type != "Conv":
            return factors.reshape([-1 if axis == self.input_axis else 1 for axis in range(2)])
        rows = np.repeat(factors.reshape(self.groups, -1), self.outputs // self.groups, axis=0)
        return rows.reshape(*rows.shape, *[1] * (self.weight.ndim - 2))

    def output_sizes(self, weight: Array) -> Array:
        """Return the largest absolute weight of each output channel."""
        others = tuple(axis for axis in range(weight.ndim) if axis != self.output_axis)
        return np.asarray(np.abs(weight).max(axis=others))

    def input_sizes(self, weight: Array) -> Array:
        """Return the largest absolute weight that each input channel meets."""
        sizes = np.abs(weight)
        if self.node.op_type != "Conv":
            return np.asarray(sizes.max(axis=self.output_axis))
        sizes = sizes.reshape(*sizes.shape[:2], -1).max(axis=2)
        return np.asarray(sizes.reshape(self.groups, -1, sizes.shape[1]).max(axis=1).ravel())

    def rows(self, weight: Array) -> Array:
        """Return a weight as (groups, outputs of a group, products of an output)."""
        if self.node.op_type == "Conv":
            return weight.reshape(self.groups, self.outputs // self.groups, -1)
        return np.moveaxis(weight, self.output_axis, 0)[None]

    def stored(self, rows: Array) -> Array:
        """Return what ``rows`` made as it is stored."""
        if self.node.op_type == "Conv":
            return rows.reshape(self.weight.shape)
        return np.ascontiguousarray(np.moveaxis(rows[0], 0, self.output_axis))


def layers(index: Index, plans: Sequence[LayerPlan], *, several: bool = False) -> dict[int, Layer]:
    """Return the layers that repairs may change, by their node's place.

    Convolutions and linear layers whose weight is a float32 constant that is finite.

    Args:
        index: The graph.
        plans: What each layer is to become.
        several: Whether layers that several nodes compute are among them, one row a node.
    """
    by_name = {item.name: item for item in plans}
    names = [layer_of(node) if own(node) else None for node in index.nodes]
    counts = Counter(names)
    found = {}
    for place, (node, name) in enumerate(zip(index.nodes, names, strict=True)):
        if name not in by_name or name is None or node.op_type not in _KINDS or (counts[name] > 1 and not several):
            continue
        weight = index.value(node.input[1])
        linear = node.op_type != "Conv"
        if weight is None or weight.dtype != np.float32 or weight.size == 0 or not np.isfinite(weight).all():
            continue
        if (linear and weight.ndim != 2) or weight.ndim < 2 or attribute(node, "transA", 0):
            continue
        axis = 0 if not linear or attribute(node, "transB", 0) else 1
        groups = 1 if linear else int(attribute(node, "group", 1))
        found[place] = Layer(
            place=place,
            node=node,
            plan=by_name[name],
            weight=weight,
            output_axis=axis,
            input_axis=1 - axis,
            groups=groups,
        )
    return found


class Editor:
    """A copy of a graph whose nodes get constants of their own: what other nodes read stays as it is.

    Args:
        index: The graph.
    """

    def __init__(self, index: Index) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(index.model)
        self.nodes = list(self.model.graph.node)
        self._taken = index.names()

    def name(self, stem: str) -> str:
        """Return a name that is free, and take it."""
        return free_name(stem, self._taken)

    def constant(self, stem: str, value: Array) -> str:
        """Store a float32 constant and return its name."""
        name = self.name(stem)
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        return name

    def give(self, place: int, position: int, value: Array, word: str) -> None:
        """Give a node a constant of its own as one of its inputs."""
        node = self.nodes[place]
        node.input[position] = self.constant(f"{node.name or node.output[0]}/{word}", value)

    def done(self, behind: Iterable[tuple[int, onnx.NodeProto]] = ()) -> onnx.ModelProto:
        """Return the graph, with nodes put behind those of some places, and without what nothing reads any more.

        Args:
            behind: Place of a node, -1 for the graph's beginning, and the node to put behind it.
        """
        added: dict[int, list[onnx.NodeProto]] = {}
        for place, node in behind:
            added.setdefault(place, []).append(node)
        if added:
            order = list(added.get(-1, []))
            for place, node in enumerate(self.nodes):
                order += [node, *added.get(place, [])]
            copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
            del self.model.graph.node[:]
            self.model.graph.node.extend(copies)
        drop_unused(self.model)
        return self.model
