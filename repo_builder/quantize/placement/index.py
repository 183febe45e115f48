"""Who makes and reads each tensor of a graph, and what its constants hold: the look-ups of placement."""

from __future__ import annotations

import contextlib
from collections import defaultdict

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from repo_builder.core.graphs import bodies, outer_reads, own
from repo_builder.core.tensors import Array

_SMALL_BYTES = 4096  # initializers that shape inference may want to read: shapes, axes, splits
# Never evaluated ahead: they draw numbers, or depend on more than their inputs.
_UNFOLDABLE = frozenset({"If", "Loop", "Scan", "RandomNormal", "RandomUniform", "Multinomial", "Bernoulli", "Dropout"})


class Index:
    """A model's main graph, looked up by tensor name. Nodes are known by their place in the graph.

    Not ``core.graphs.Graph``, which is made in no time: placement keeps sets of nodes, which need a key that hashes,
    and asks for what takes a look at the whole graph: values that constants give, types and shapes.

    Attributes:
        nodes: The main graph's nodes.
        makers: Tensor → place of the node that makes it.
        readers: Tensor → places of the nodes that read it, each once; subgraphs' reads are not among them.
        inner: Tensors that a subgraph of some node reads or returns from outside itself.
        inputs: Graph inputs that are no initializers.
        outputs: Graph outputs.
        floats: float32 tensors that are not constant.
        shapes: Tensor → its dimensions as far as ONNX can infer them, None for one that varies.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.makers = {name: place for place, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, list[int]] = defaultdict(list)
        self.inner: set[str] = set()
        for place, node in enumerate(self.nodes):
            for name in dict.fromkeys(node.input):
                if name:
                    self.readers[name].append(place)
            self.inner.update(outer_reads(node))
        given = {item.name for item in model.graph.input}
        self.initializers = {item.name: item for item in model.graph.initializer}
        self.inputs = [item.name for item in model.graph.input if item.name not in self.initializers]
        self.outputs = {item.name for item in model.graph.output}
        # An initializer that is an input, too, is a default that a caller may replace.
        self._stored = {name: item for name, item in self.initializers.items() if name not in given}
        self._folded: dict[str, Array | None] = {}
        self._constants = {*self._stored, ""}  # an input that is left out is an empty name
        for node in self.nodes:
            if _foldable(node) and all(name in self._constants for name in node.input):
                self._constants.update(node.output)
        types = _tensor_types(model)
        floats = {name for name, kind in types.items() if kind.elem_type == TensorProto.FLOAT}
        self.floats = floats - set(self.initializers) - self._constants
        self.shapes = {
            name: tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
            for name, kind in types.items()
            if kind.HasField("shape")
        }

    def constant(self, name: str) -> bool:
        """Whether a tensor is an initializer or computed of initializers alone."""
        return name in self._constants

    def value(self, name: str) -> Array | None:
        """Return a constant tensor's value, computed where it has to be; None for a tensor that is not constant."""
        if name in self._stored:
            return numpy_helper.to_array(self._stored[name])
        if name not in self._folded:
            self._folded[name] = self._fold(name) if name and self.constant(name) else None
        return self._folded[name]

    def _fold(self, name: str) -> Array | None:
        node = self.nodes[self.makers[name]]
        feeds = {item: self.value(item) for item in node.input if item}
        if any(value is None for value in feeds.values()):
            return None
        inputs = [helper.make_value_info(item, onnx.TypeProto()) for item in feeds]
        graph = helper.make_graph([node], "one", inputs, [helper.make_value_info(name, onnx.TypeProto())])
        single = helper.make_model(graph, opset_imports=self.model.opset_import)
        try:
            return np.asarray(ReferenceEvaluator(single).run([name], feeds)[0])  # type: ignore[index]
        except Exception:  # an operator that the reference does not know: the tensor then counts as computed
            return None

    def names(self) -> set[str]:
        """Return every name that tensors and nodes of the graph and its subgraphs bear."""
        found = {item.name for item in (*self.model.graph.input, *self.model.graph.output)} | set(self.initializers)
        pending = [self.model.graph]
        while pending:
            graph = pending.pop()
            found.update(item.name for item in (*graph.initializer, *graph.input, *graph.output))
            for node in graph.node:
                found.update((node.name, *node.input, *node.output))
                pending.extend(bodies(node))
        return found


def _foldable(node: onnx.NodeProto) -> bool:
    return own(node) and node.op_type not in _UNFOLDABLE and not any(bodies(node)) and bool(node.output)


def _tensor_types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Return the types of all tensors but initializers, as far as ONNX can infer them.

    Weights travel as inputs without values, so that a model of any size can be inferred.
    """
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.name = model.graph.name or "graph"
    for field in ("node", "input", "output", "value_info"):
        getattr(light.graph, field).extend(getattr(model.graph, field))
    given = {item.name for item in model.graph.input}
    for item in model.graph.initializer:
        if numpy_size(item) <= _SMALL_BYTES and item.data_location != TensorProto.EXTERNAL:
            light.graph.initializer.append(item)
        elif item.name not in given:
            light.graph.input.append(helper.make_tensor_value_info(item.name, item.data_type, list(item.dims)))
    with contextlib.suppress(Exception):  # then what the file itself says of its types has to do
        light = onnx.shape_inference.infer_shapes(light)
    found = (*light.graph.value_info, *light.graph.input, *light.graph.output)
    return {item.name: item.type.tensor_type for item in found}


def numpy_size(item: onnx.TensorProto) -> int:
    """Return about how many bytes a stored tensor has."""
    return int(np.prod(item.dims, dtype=np.int64)) * 8
