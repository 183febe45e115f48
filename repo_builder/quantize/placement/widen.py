"""Channels of int8 convolutions brought to what a runtime's kernels take at once, by channels of zeros.

Depthwise: ONNX Runtime's kernel takes 16 channels at a time and the rest one by one, and 120 channels take twice the
time of 128. The layer in front gets outputs whose weights are 0, the layer behind inputs whose weights are 0, and what
the new channels hold in between (0, or what an activation makes of 0) reaches nobody: the network computes what it did,
bit for bit. From a depthwise convolution, every tensor that has to have as many channels is found, through activations,
sums, products and pools, up to the convolutions that make and read them; where anything else is met, or a tensor leaves
the graph, all stays as it is.

Of images: the kernel that reads an image where it lies takes 4 channels at a time, and with 3 another one copies it
first, kernel position by kernel position. The codes of the network's input get channels of zeros, and the convolution
weights of 0 for them. Behind other tensors the Pad would cost more: they lie channels last by then.

Looked at is the placed graph.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from repo_builder.core.graphs import DQ, Q, attribute, free_name, with_nodes
from repo_builder.core.tensors import Array
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.placement.table import Profile

_ALONE = frozenset({
    Q, DQ, "AveragePool", "Clip", "GlobalAveragePool", "HardSigmoid", "HardSwish", "LeakyRelu", "MaxPool", "Relu",
    "Sigmoid",
})  # fmt: skip
_TOGETHER = frozenset({"Add", "Max", "Mul", "Sub"})
# The kernel that reads images where they lie wants so many outputs. From 6 × 6 values on, copying is as fast.
_LEAST_OUTPUTS, _LARGEST_KERNEL = 16, 25


def fitted(model: onnx.ModelProto, profile: Profile) -> onnx.ModelProto:
    """Return a placed graph whose int8 convolutions have channels as the target's kernels take them.

    Args:
        model: The graph with its Q/DQ; it is not changed.
        profile: The target.
    """
    if not any(node.op_type == "Conv" for node in model.graph.node):
        return model  # nothing to copy for: transformers are what has gigabytes
    if profile.channels_at_once:
        model = widened(model, profile.channels_at_once)
    return filled(model, profile.image_channels_at_once) if profile.image_channels_at_once else model


def filled(model: onnx.ModelProto, multiple: int) -> onnx.ModelProto:
    """Return a placed graph whose int8 convolutions of the network's inputs have a multiple of so many channels.

    Args:
        model: The graph with its Q/DQ; it is not changed.
        multiple: Of how many channels.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    index = Index(made)
    wide: dict[str, str] = {}  # dequantized input → the same with more channels
    nodes = []
    for place, node in enumerate(made.graph.node):
        channels = _image(index, place)
        if channels % multiple:
            name = node.input[0]
            if name not in wide:
                wide[name] = free_name(f"{name}/wide", index.names() | set(wide.values()))
                nodes += _padded(index, index.nodes[index.makers[name]], wide[name], -channels % multiple)
            node.input[0] = wide[name]
            _lengthen(index, node, 1, 1, -channels % multiple)
        nodes.append(node)
    if not wide:
        return made
    read = {name for node in nodes for name in node.input} | index.outputs | index.inner
    kept = [node for node in nodes if node.output[0] not in wide or node.output[0] in read]
    return with_nodes(made, kept, [])


def _image(index: Index, place: int) -> int:
    """Return the channels of a convolution of codes of a network's input, as the kernel wants it; 0 for other nodes."""
    node = index.nodes[place]
    shape = _weight_shape(index, node)
    if len(shape) != 4 or attribute(node, "group", 1) != 1:
        return 0
    if shape[0] < _LEAST_OUTPUTS or np.prod(shape[2:]) > _LARGEST_KERNEL or not _is_int8(index, place):
        return 0
    codes = index.nodes[index.makers[node.input[0]]].input[0]
    given = _maker(index, codes) == Q and index.nodes[index.makers[codes]].input[0] in index.inputs
    return shape[1] if given and _is_stored(index, node.input[1]) else 0


def _padded(index: Index, dequantize: onnx.NodeProto, output: str, count: int) -> list[onnx.NodeProto]:
    """Return a Pad of codes by channels of code 0, whatever it stands for, and the DequantizeLinear behind it."""
    taken = index.names()
    pads = numpy_helper.from_array(np.array([0] * 5 + [count, 0, 0]), free_name(f"{output}/pads", taken))
    index.model.graph.initializer.append(pads)
    codes = free_name(f"{output}/codes", taken)
    again = onnx.NodeProto()
    again.CopyFrom(dequantize)
    again.name, again.input[0], again.output[0] = free_name(f"{output}/{DQ}", taken), codes, output
    pad = onnx.helper.make_node("Pad", [dequantize.input[0], pads.name], [codes], free_name(f"{output}/Pad", taken))
    return [pad, again]


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
        if node.op_type == "Shape" and not self._is_read(node.output[0]):  # ``write._guard``'s
            return []
        return None

    def _is_read(self, name: str) -> bool:
        return bool(self._index.readers[name]) or name in self._index.outputs | self._index.inner

    def _convolution(self, place: int, name: str) -> list[str] | None:
        index, node = self._index, self._index.nodes[place]
        shape, stored = _weight_shape(index, node), [item for item in node.input[1:] if item]
        if not shape or not all(_is_stored(index, item) for item in stored):
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

    def pad(self, count: int) -> None:
        """Add so many channels of zeros."""
        for place in sorted(self._outputs | self._depthwise):
            node = self._index.nodes[place]
            for at in range(1, len(node.input)):
                if node.input[at]:
                    _lengthen(self._index, node, at, 0, count)
        for place in sorted(self._inputs):
            _lengthen(self._index, self._index.nodes[place], 1, 1, count)
        for place in self._depthwise:
            for item in self._index.nodes[place].attribute:
                if item.name == "group":
                    item.i = self._channels + count


def _is_stored(index: Index, name: str) -> bool:
    """Whether a constant is one convolution's own: an initializer, or codes that are dequantized for it alone."""
    if name in index.initializers:
        return True
    parts = index.nodes[index.makers[name]].input if _maker(index, name) == DQ else ()
    alone = len(index.readers[name]) == 1
    return bool(parts) and alone and all(item in index.initializers for item in parts)


def _lengthen(index: Index, node: onnx.NodeProto, at: int, axis: int, count: int) -> None:
    """Give a constant of a node zeros at the end of an axis, and codes their scales and zero points there."""
    name = node.input[at]
    if name in index.initializers:
        node.input[at] = _longer(index, name, axis, count)
        return
    maker = index.nodes[index.makers[name]]
    maker.input[0] = _longer(index, maker.input[0], axis, count)
    if len(index.initializers[maker.input[1]].dims) == 1 and attribute(maker, "axis", 1) == axis:
        maker.input[1] = _longer(index, maker.input[1], 0, count, again=True)
        if len(maker.input) > 2:
            maker.input[2] = _longer(index, maker.input[2], 0, count)


def _longer(index: Index, name: str, axis: int, count: int, *, again: bool = False) -> str:
    """Store a constant with zeros, or its last value again, at an axis' end, under a name of its own.

    Others may read the one that it is made of. A scale goes on with its last value, as a runtime asks whether a bias
    has the input's scale times the weight's.
    """
    value = numpy_helper.to_array(index.initializers[name])
    widths = [(0, count if place == axis else 0) for place in range(value.ndim)]
    longer: Array = np.pad(value, widths, mode="edge" if again else "constant")
    taken = set(index.initializers) | set(index.makers) | {item.name for item in index.model.graph.input}
    made = numpy_helper.from_array(longer, free_name(f"{name}/wide", taken))
    index.model.graph.initializer.append(made)
    index.initializers[made.name] = index.model.graph.initializer[-1]
    return made.name
