"""Channels of int8 depthwise convolutions brought to what a runtime's kernel takes at once, by channels of zeros.

ONNX Runtime's kernel takes 16 channels at a time and the rest one by one: 120 channels take twice the time of 128. The
layer in front gets outputs whose weights are 0, the layer behind inputs whose weights are 0, and what the new channels
hold in between (0, or what an activation makes of 0) reaches nobody: the network computes what it did, bit for bit.

Looked at is the placed graph. From a depthwise convolution, every tensor that has to have as many channels is found,
through activations, sums, products and pools, up to the convolutions that make and read them; where anything else is
met, or a tensor leaves the graph, all stays as it is.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from repo_builder.core.graphs import DQ, Q, attribute, free_name
from repo_builder.core.tensors import Array
from repo_builder.quantize.placement.index import Index

_ALONE = frozenset({
    Q, DQ, "AveragePool", "Clip", "GlobalAveragePool", "HardSigmoid", "HardSwish", "LeakyRelu", "MaxPool", "Relu",
    "Sigmoid",
})  # fmt: skip
_TOGETHER = frozenset({"Add", "Max", "Mul", "Sub"})


def widened(model: onnx.ModelProto, multiple: int) -> onnx.ModelProto:
    """Return a placed graph whose int8 depthwise convolutions have a multiple of so many channels, where they can.

    Args:
        model: The graph with its Q/DQ; it is not changed.
        multiple: Of how many channels.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    index = Index(made)
    done: set[str] = set()
    for place in range(len(index.nodes)):
        channels = _depthwise(index, place)
        if channels % multiple and index.nodes[place].input[0] not in done and _is_int8(index, place):
            bundle = _Bundle(index, channels)
            if bundle.spread(place):
                bundle.pad(-channels % multiple)
                done |= bundle.tensors
    for item in [item for item in made.graph.value_info if item.name in done]:
        made.graph.value_info.remove(item)
    return made


def _depthwise(index: Index, place: int) -> int:
    """Return the channels of a depthwise convolution, one filter each; 0 for any other node."""
    node = index.nodes[place]
    shape = _weight_shape(index, node)
    groups = int(attribute(node, "group", 1))
    return groups if node.op_type == "Conv" and shape[:2] == (groups, 1) and groups > 1 else 0


def _is_int8(index: Index, place: int) -> bool:
    """Whether a convolution reads codes and gives codes: what the runtime makes one int8 operator."""
    node = index.nodes[place]
    reads = all(_maker(index, name) == DQ for name in node.input[:2])
    ends = [index.nodes[at] for at in index.readers[node.output[0]]]
    clips = [item for item in ends if item.op_type in ("Clip", "Relu")]
    ends += [index.nodes[at] for item in clips for at in index.readers[item.output[0]]]
    return reads and any(item.op_type == Q for item in ends)


def _maker(index: Index, name: str) -> str:
    return index.nodes[index.makers[name]].op_type if name in index.makers else ""


def _weight_shape(index: Index, node: onnx.NodeProto) -> tuple[int, ...]:
    """Return the shape of a convolution's stored weight; empty where it has none."""
    if node.op_type != "Conv":
        return ()
    name = node.input[1]
    if _maker(index, name) == DQ:
        name = index.nodes[index.makers[name]].input[0]
    return tuple(index.initializers[name].dims) if name in index.initializers else ()


class _Bundle:
    """Tensors that have the same channels.

    Args:
        index: The graph, which is changed.
        channels: How many there are.
    """

    def __init__(self, index: Index, channels: int) -> None:
        self._index, self._channels = index, channels
        self.tensors: set[str] = set()
        self._outputs: set[int] = set()  # convolutions whose outputs are these channels
        self._inputs: set[int] = set()  # those whose inputs are
        self._depthwise: set[int] = set()

    def spread(self, place: int) -> bool:
        """Find all tensors and convolutions from one on; return whether all of them can be widened."""
        waiting = [self._index.nodes[place].input[0]]
        while waiting:
            name = waiting.pop()
            if name in self.tensors:
                continue
            if not self._can_be(name):
                return False
            self.tensors.add(name)
            for at in (self._index.makers[name], *self._index.readers[name]):
                more = self._through(at, name)
                if more is None:
                    return False
                waiting += more
        return True

    def _can_be(self, name: str) -> bool:
        index = self._index
        shape = index.shapes.get(name, ())
        outside = name in index.outputs or name in index.inner or name not in index.makers
        return not outside and len(shape) == 4 and shape[1] == self._channels

    def _through(self, place: int, name: str) -> list[str] | None:
        """Return what else has the channels that a tensor at a node has; None where they cannot be followed."""
        node = self._index.nodes[place]
        if node.op_type == "Conv":
            return self._convolution(place, name)
        if node.op_type in _ALONE and all(self._is_scalar(item) for item in node.input[1:] if item):
            return [node.input[0], *node.output]
        if node.op_type in _TOGETHER:
            return [*(item for item in node.input if not self._is_scalar(item)), *node.output]
        return None

    def _convolution(self, place: int, name: str) -> list[str] | None:
        index, node = self._index, self._index.nodes[place]
        shape, stored = _weight_shape(index, node), [item for item in node.input[1:] if item]
        if not shape or not all(self._is_stored(item) for item in stored):
            return None
        if _depthwise(index, place) == self._channels:
            self._depthwise.add(place)
            return [node.input[0], *node.output]
        if attribute(node, "group", 1) != 1:
            return None
        if name in node.output:
            self._outputs.add(place)
        if name == node.input[0]:
            self._inputs.add(place)
        return []

    def _is_scalar(self, name: str) -> bool:
        """Whether a tensor is one stored number, or its codes."""
        index = self._index
        stored = index.nodes[index.makers[name]].input[0] if _maker(index, name) == DQ else name
        return stored in index.initializers and np.prod(index.initializers[stored].dims) == 1

    def _is_stored(self, name: str) -> bool:
        """Whether a constant is this convolution's own: an initializer, or codes that are dequantized for it alone."""
        index = self._index
        if name in index.initializers:
            return True
        parts = index.nodes[index.makers[name]].input if _maker(index, name) == DQ else ()
        alone = len(index.readers[name]) == 1
        return bool(parts) and alone and all(item in index.initializers for item in parts)

    def pad(self, count: int) -> None:
        """Add so many channels of zeros."""
        for place in sorted(self._outputs | self._depthwise):
            node = self._index.nodes[place]
            for at in range(1, len(node.input)):
                if node.input[at]:
                    self._longer(node, at, 0, count)
        for place in sorted(self._inputs):
            self._longer(self._index.nodes[place], 1, 1, count)
        for place in self._depthwise:
            for item in self._index.nodes[place].attribute:
                if item.name == "group":
                    item.i = self._channels + count

    def _longer(self, node: onnx.NodeProto, at: int, axis: int, count: int) -> None:
        """Give a constant of a node zeros at the end of an axis, and codes their scales and zero points there."""
        index, name = self._index, node.input[at]
        if name in index.initializers:
            node.input[at] = self._stored(name, axis, count)
            return
        maker = index.nodes[index.makers[name]]
        maker.input[0] = self._stored(maker.input[0], axis, count)
        if len(index.initializers[maker.input[1]].dims) == 1 and attribute(maker, "axis", 1) == axis:
            maker.input[1] = self._stored(maker.input[1], 0, count, again=True)
            if len(maker.input) > 2:
                maker.input[2] = self._stored(maker.input[2], 0, count)

    def _stored(self, name: str, axis: int, count: int, *, again: bool = False) -> str:
        """Store a constant with zeros, or its last value again, at an axis' end, under a name of its own.

        Others may read the one that it is made of. A scale goes on with its last value, as a runtime asks whether a
        bias has the input's scale times the weight's.
        """
        index = self._index
        value = numpy_helper.to_array(index.initializers[name])
        widths = [(0, count if place == axis else 0) for place in range(value.ndim)]
        longer: Array = np.pad(value, widths, mode="edge" if again else "constant")
        taken = set(index.initializers) | set(index.makers) | {item.name for item in index.model.graph.input}
        made = numpy_helper.from_array(longer, free_name(f"{name}/wide", taken))
        index.model.graph.initializer.append(made)
        index.initializers[made.name] = index.model.graph.initializer[-1]
        return made.name
