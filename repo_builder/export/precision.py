"""fp16 regions in an ONNX graph: chosen layers compute in half precision, everything around them stays as it was.

A region is a chosen layer and the nodes behind it that are fed by nothing else and are known to be safe in fp16, as
Relu or pooling. Its weights become fp16 initializers. One Cast stands where a tensor enters or leaves a region; inputs,
outputs, quantizers and their scales stay fp32, so nothing comes between a DequantizeLinear and an int8 layer. A node
whose constant fp16 cannot hold (a mask of -1e9, a floor of 1e-12) stays fp32, and so do bodies of If, Loop and Scan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core.errors import ExportError, first_line
from repo_builder.core.graphs import LAYER_OPS, MOVES, Graph, drop_unused, layer_of, outer_reads
from repo_builder.export.masks import LARGEST, as_half, why_no_infinity

_SMALLEST = float(np.finfo(np.float16).tiny)  # below, fp16 loses digits one by one until nothing is left
# What may follow its input into fp16: it moves, compares or scales values, or squashes them, and sums no long rows.
_FOLLOWERS = MOVES | {
    "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Dropout", "Elu", "Gather", "GlobalMaxPool",
    "HardSigmoid", "HardSwish", "LeakyRelu", "MaxPool", "Mul", "Neg", "PRelu", "Pad", "Relu", "Sigmoid", "Slice",
    "Split", "Sub", "Tanh", "Where",
}  # fmt: skip
# What NVIDIA's AutoCast would let follow, too: sums over rows and quotients, which engines accumulate in fp32. In ONNX
# a LayerNormalization computes in fp32 whatever it reads (``stash_type``).
NORMALIZING = frozenset({"Div", "Erf", "Gelu", "LayerNormalization", "Softmax", "Sqrt"})
_BLIND = frozenset({"Shape", "Size"})  # read no values
_BIAS = 2  # which input of a layer is added to its sums


def to_fp16_regions(
    model: onnx.ModelProto,
    fp16_layers: frozenset[str],
    say: Callable[[str], None] = lambda _: None,
    more: frozenset[str] = frozenset(),
) -> onnx.ModelProto:
    """Return a copy of a model in which the chosen layers, and what only they feed, compute in fp16.

    Args:
        model: An fp32 model, with or without Q/DQ.
        fp16_layers: Layer names, as ``qdq.layer_of`` gives them.
        say: Takes a sentence for each node behind such a layer that stays fp32 because of a constant, and for each
            mask that becomes -inf.
        more: Operators that may follow their input into fp16 beside those that always may, as ``NORMALIZING``.

    Raises:
        ExportError: A layer is not in the graph or is int8, or a weight does not fit fp16.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _lift_constants(result)
    graph = Graph(result)
    floats, ranks = _float_tensors(result)
    fits = _Fits(graph, _outer(result), ranks, say)
    half = _half_nodes(result, graph, floats, fp16_layers, fits, _FOLLOWERS | more)
    halved = {name for node in result.graph.node if _key(node) in half for name in node.output if name in floats}
    nodes = _Rewriter(result, graph, floats, half, halved, fits.masks).run()
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend(nodes)
    drop_unused(result)
    try:
        result = onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)
        onnx.checker.check_model(result, full_check=True)
    except Exception as error:  # onnx's errors share no base class
        raise ExportError(f"fp16 regions make an invalid graph: {first_line(error)}") from error
    return result


class _Rewriter:
    """Rebuilds the node list with Casts at the borders."""

    def __init__(
        self,
        model: onnx.ModelProto,
        graph: Graph,
        floats: set[str],
        half: set[str],
        halved: set[str],
        masks: set[str],
    ) -> None:
        self.model, self.graph, self.floats, self.half, self.halved = model, graph, floats, half, halved
        self.masks = masks
        self.outputs = _outer(model)  # what is read by its name from elsewhere stays fp32 under it
        self.nodes: list[onnx.NodeProto] = []
        self.made: set[str] = set()

    def run(self) -> list[onnx.NodeProto]:
        """Return the new nodes, in an order that is still topological."""
        for old in self.model.graph.node:
            node = onnx.NodeProto()
            node.CopyFrom(old)
            half = _key(old) in self.half
            for place, name in enumerate(old.input):
                if name in self.floats and old.op_type not in _BLIND:
                    node.input[place] = self._as_half(name, old) if half else self._as_float(name)
                elif name in self.halved:
                    node.input[place] = self._half_name(name)
            for place, name in enumerate(old.output):
                if name in self.halved:
                    node.output[place] = self._half_name(name)
            self.nodes.append(node)
            for name in old.output:
                if name in self.halved and name in self.outputs:
                    self._cast(self._half_name(name), name, TensorProto.FLOAT)
        return self.nodes

    def _half_name(self, name: str) -> str:
        return f"{name}_fp16" if name in self.outputs else name

    def _as_half(self, name: str, reader: onnx.NodeProto) -> str:
        if name in self.halved:
            return self._half_name(name)
        target = f"{name}_fp16"
        if name not in self.graph.constants:
            return self._cast(name, target, TensorProto.FLOAT16)
        if all(_key(node) in self.half for node in self.graph.consumers[name]):
            target = name  # nobody else needs it in fp32, and its name is the layer's
        if target not in self.made:
            self.made.add(target)
            self._store_half(name, target, reader)
        return target

    def _as_float(self, name: str) -> str:
        if name not in self.halved or name in self.outputs:
            return name
        return self._cast(name, f"{name}_fp32", TensorProto.FLOAT)

    def _cast(self, source: str, target: str, to: int) -> str:
        if target not in self.made:
            self.made.add(target)
            self.nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=to))
        return target

    def _store_half(self, name: str, target: str, reader: onnx.NodeProto) -> None:
        value = numpy_helper.to_array(self.graph.constants[name])
        finite = np.abs(value[np.isfinite(value)])
        most = float(finite.max()) if finite.size else 0.0
        # What is added may be small: fp16 stores it to 2**-25, and a sum in fp16 has no finer steps.
        vanishes = 0 < most < _SMALLEST and not _added(name, reader)
        if (most > LARGEST and name not in self.masks) or vanishes:
            raise ExportError(
                f"'{name}' holds {most:.3g}, {'more' if most > 1 else 'less'} than fp16 can "
                f"({_SMALLEST:.1e} to {LARGEST:.0f})",
                where=layer_of(reader) or reader.name,
                hint="keep the layer in fp32",
            )
        stored = self.graph.constants[name] if target == name else self.model.graph.initializer.add()
        stored.CopyFrom(numpy_helper.from_array(as_half(value), target))


def _key(node: onnx.NodeProto) -> str:
    """Return what tells a node from all others: its first output."""
    return node.output[0] if node.output else ""


def _added(name: str, reader: onnx.NodeProto) -> bool:
    """Tell whether a node only adds a constant to what it computes."""
    if reader.op_type in LAYER_OPS:
        return name in reader.input[_BIAS:] and name not in reader.input[:_BIAS]
    return reader.op_type in {"Add", "Sub"}


def _outer(model: onnx.ModelProto) -> set[str]:
    """Return what is read by its name from elsewhere: outputs, and what bodies of If and Loop read."""
    outputs = {item.name for item in model.graph.output}
    return outputs | {name for node in model.graph.node for name in outer_reads(node)}


def _half_nodes(
    model: onnx.ModelProto,
    graph: Graph,
    floats: set[str],
    layers: frozenset[str],
    fits: _Fits,
    followers: frozenset[str],
) -> set[str]:
    """Return the keys of the nodes that compute in fp16."""
    half: set[str] = set()
    found = set()
    for node in model.graph.node:
        layer = layer_of(node)
        data = [name for name in node.input if name in floats and graph.constant_behind(name) is None]
        if layer in layers:
            if node.op_type in LAYER_OPS and len(node.input) > 1 and graph.dequantized(node.input[1]):
                raise ExportError("the layer is quantized and cannot be fp16 too", where=layer)
            found.add(layer)
            half.add(_key(node))
            # a sum that is asked for may add what is small, as a bias
            why = "" if node.op_type in LAYER_OPS else fits.why_not(node, asked=True)
            if why:
                raise ExportError(why, where=layer, hint="keep the layer in fp32")
        elif node.op_type in followers and data and graph.weight(node) is None:
            makers = [graph.producers.get(name) for name in data]
            if all(maker is not None and _key(maker) in half for maker in makers):
                why = fits.why_not(node)
                if why:
                    fits.say(f"{node.name or node.output[0]} ({node.op_type}) stays fp32: {why}")
                else:
                    half.add(_key(node))
    if layers - found:
        raise ExportError(f"the graph has no layer '{min(layers - found)}' to make fp16")
    for node in reversed(model.graph.node):  # what prepares a weight, as a Transpose of it
        fixed = node.op_type in MOVES and all(name in graph.constants for name in node.input)
        readers = [reader for name in node.output for reader in graph.consumers[name]]
        if fixed and readers and all(_key(reader) in half for reader in readers):
            half.add(_key(node))
    return half


class _Fits:
    """Says whether nodes' constants fit fp16, and knows the masks that do as -inf.

    Attributes:
        masks: Constants that become -inf where fp16 cannot hold them.
        say: Takes a sentence for the user.
    """

    def __init__(self, graph: Graph, outer: set[str], ranks: Mapping[str, int], say: Callable[[str], None]) -> None:
        self.graph, self.outer, self.ranks, self.say = graph, outer, ranks, say
        self.masks: set[str] = set()

    def why_not(self, node: onnx.NodeProto, *, asked: bool = False) -> str:
        """Return why a node's constants do not fit fp16, an empty text where they do; infinity fits.

        Args:
            node: The node.
            asked: Whether a rule asks for fp16: what it adds may then be small.
        """
        for name in node.input:
            value = self.graph.value(name)
            if value is None or value.dtype != np.float32:
                continue
            sizes = np.abs(value[np.isfinite(value) & (value != 0)])
            if not sizes.size or (sizes.max() <= LARGEST and sizes.min() >= _SMALLEST):
                continue
            what = f"its constant '{name}' holds"
            if sizes.min() < _SMALLEST and not (asked and _added(name, node)):
                return f"{what} {sizes.min():.3g}, which fp16 cannot"
            if sizes.max() <= LARGEST:
                continue
            why = why_no_infinity(self.graph, node, name, self.outer, self.ranks)
            if why:
                return f"{what} {sizes.max():.3g}, which fp16 cannot, and {why}"
            self.masks.add(name)
            at = f"{node.name or node.output[0]} ({node.op_type})"
            self.say(f"{at}: {what} {sizes.max():.3g}, which fp16 cannot; it masks with infinity instead, as exactly")
        return ""


def _float_tensors(model: onnx.ModelProto) -> tuple[set[str], dict[str, int]]:
    """Return the names of all fp32 tensors, and the number of axes of those whose shape is known."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values: Iterable[onnx.ValueInfoProto] = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    named = [item for item in values if item.type.tensor_type.elem_type == TensorProto.FLOAT]
    shapes = {item.name: item.type.tensor_type.shape for item in named if item.type.tensor_type.HasField("shape")}
    stored = {item.name for item in model.graph.initializer if item.data_type == TensorProto.FLOAT}
    return {item.name for item in named} | stored, {name: len(shape.dim) for name, shape in shapes.items()}


def _lift_constants(model: onnx.ModelProto) -> None:
    """Turn fp32 Constant nodes into initializers."""
    for node in list(model.graph.node):
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.t.data_type == TensorProto.FLOAT:
                stored = model.graph.initializer.add()
                stored.CopyFrom(attribute.t)
                stored.name = node.output[0]
                model.graph.node.remove(node)
                break
