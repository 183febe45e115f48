"""Readings of ONNX graphs that several stages share: who makes and reads a tensor, which layer a node computes.

How layers are named. In every graph that this project exports, the node that computes a layer bears the layer's own
qualified name, as in ``feature_layers.0`` for the Conv of that module; where a module runs more than once, later nodes
are ``feature_layers.0#2`` and so on. Its type in torch stands in the node's metadata. TensorRT's inspector shows node
names, so nothing else has to survive. In a graph from elsewhere a layer's name is its node's name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import onnx
from google.protobuf.message import Message
from onnx import helper, numpy_helper

from repo_builder.core.precisions import PRECISIONS, PrecisionKind
from repo_builder.core.tensors import Array

ONNX_DOMAINS = ("", "ai.onnx")
Q, DQ = "QuantizeLinear", "DequantizeLinear"
LAYER_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
WEIGHTLESS_OPS = frozenset({"Add", "AveragePool", "GlobalAveragePool", "MaxPool"})
DYNAMIC_OPS = frozenset({"MatMulInteger"})  # linear layers whose input's range is found in every run
BLOCKED_OPS = frozenset({"MatMulNBits"})  # ONNX Runtime's linear layers with weights of few bits in blocks
MOVES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
TYPE = "repo_builder.type"  # key of a node's metadata: the layer's type in torch, as in Conv2d
_RUN = re.compile(r"#\d+$")


class Graph:
    """Who makes and who reads each tensor of a model's main graph.

    Attributes:
        producers: Tensor → node that makes it.
        consumers: Tensor → nodes that read it; where a body of If, Loop or Scan does, the node that has the body.
        constants: Tensor → TensorProto of every initializer and Constant node.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.producers: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.constants: dict[str, onnx.TensorProto] = {item.name: item for item in model.graph.initializer}
        for node in model.graph.node:
            for name in node.output:
                self.producers[name] = node
            for name in (*node.input, *outer_reads(node)):
                self.consumers[name].append(node)
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self.constants[node.output[0]] = attribute.t

    def value(self, name: str) -> Array | None:
        """Return a constant tensor's value, None where it is no constant."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def weight(self, node: onnx.NodeProto) -> str | None:
        """Return the constant that a layer's weight is made of; None for other nodes and for a computed weight."""
        if node.op_type not in LAYER_OPS or len(node.input) < 2:
            return None
        return self.constant_behind(node.input[1])

    def constant_behind(self, name: str) -> str | None:
        """Return the constant that a tensor is made of by Q, DQ, Cast and moves alone; None if there is none."""
        while name not in self.constants:
            maker = self.producers.get(name)
            if maker is None or maker.op_type not in MOVES | {Q, DQ, "Cast"}:
                return None
            name = maker.input[0]
        return name

    def dequantized(self, name: str) -> bool:
        """Whether a tensor comes out of a DequantizeLinear, directly or through nodes that only move values."""
        return self._dequantizer(name) is not None

    def codes(self, name: str) -> str | None:
        """Return the precision whose codes a tensor is dequantized from, ``int8`` or ``fp8``; None where it is not."""
        maker = self._dequantizer(name)
        if maker is None:
            return None
        zero = maker.input[2] if len(maker.input) > 2 else ""
        stored = self.constants.get(zero) or self.constants.get(maker.input[0])
        kind = 0 if stored is None else stored.data_type
        return next((name for name, row in PRECISIONS.items() if kind == _element(row)), "int8")

    def _dequantizer(self, name: str) -> onnx.NodeProto | None:
        maker = self.producers.get(name)
        while maker is not None and maker.op_type in MOVES:
            maker = self.producers.get(maker.input[0])
        return maker if maker is not None and maker.op_type == DQ else None


def _element(row: PrecisionKind) -> int:
    """Return the element type of a precision's codes; 0 where it has none."""
    return 0 if row.codes == "none" else int(onnx.TensorProto.DataType.Value(row.element))


def opset(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set."""
    return next((item.version for item in model.opset_import if item.domain in ONNX_DOMAINS), 0)


def own(node: onnx.NodeProto) -> bool:
    """Whether a node's operator is ONNX's own, not another domain's or a function of the model."""
    return node.domain in ONNX_DOMAINS


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node runs: the branches of If, the body of Loop or Scan."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def outer_reads(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the tensors from outside that a node's bodies read or return, each once."""
    return tuple(dict.fromkeys(name for graph in bodies(node) for name in _free(graph)))


def _free(graph: onnx.GraphProto) -> Iterator[str]:
    own = {item.name for item in (*graph.input, *graph.initializer)} | {n for node in graph.node for n in node.output}
    reads = (name for node in graph.node for name in (*node.input, *outer_reads(node)))
    yield from (name for name in (*reads, *(item.name for item in graph.output)) if name and name not in own)


def rename(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> None:
    """Rename tensors wherever nodes and their bodies read, make or return them, in place.

    ONNX lets no body reuse a name from outside, so a name means one tensor everywhere.
    """
    for node in nodes:
        for tensors in (node.input, node.output):
            for place, name in enumerate(tensors):
                tensors[place] = names.get(name, name)
        for graph in bodies(node):
            rename(graph.node, names)
            for item in graph.output:
                item.name = names.get(item.name, item.name)


def with_nodes(
    model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], initializers: Iterable[onnx.TensorProto]
) -> onnx.ModelProto:
    """Return a model like another with other nodes and more initializers; those that nothing reads are left out.

    What is left out is not even copied: the weights of a model may be half of a machine's memory.
    """
    result = onnx.ModelProto()
    copy_fields(model, result, but=("graph",))
    copy_fields(model.graph, result.graph, but=("node", "initializer", "value_info"))
    result.graph.node.extend(nodes)
    used = _read(result.graph)
    for given in (model.graph.initializer, initializers):
        result.graph.initializer.extend(item for item in given if item.name in used)
    return result


def copy_fields(source: Message, target: Message, *, but: tuple[str, ...]) -> None:
    """Copy a message's fields but some, which may be large, into an empty one."""
    for field, value in source.ListFields():
        if field.name in but:
            continue
        if field.message_type:
            getattr(target, field.name).MergeFrom(value)
        else:
            setattr(target, field.name, value)


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove initializers that neither the main graph nor a body in it reads, in place; inputs keep their defaults."""
    used = _read(model.graph)
    kept = [item for item in model.graph.initializer if item.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _read(graph: onnx.GraphProto) -> set[str]:
    """Return what nodes, bodies in them and whoever runs the graph read; inputs are kept with their defaults."""
    read = {name for node in graph.node for name in (*node.input, *outer_reads(node))}
    return read | {item.name for item in (*graph.output, *graph.input)}


def attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    """Return a node's number of that name."""
    for item in node.attribute:
        if item.name == name:
            return float(helper.get_attribute_value(item))
    return default


def free_name(stem: str, taken: set[str]) -> str:
    """Return a name that nobody bears, the stem or one like ``stem_2``, and take it."""
    found, count = stem, 1
    while found in taken:
        count += 1
        found = f"{stem}_{count}"
    taken.add(found)
    return found


def layer_of(node: onnx.NodeProto) -> str | None:
    """Return the name of the layer that a node computes; None for a node that computes none."""
    if node.op_type not in LAYER_OPS | WEIGHTLESS_OPS | DYNAMIC_OPS | BLOCKED_OPS:
        return None
    return _RUN.sub("", node.name) or node.output[0]
