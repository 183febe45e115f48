"""A graph run in pieces, each up to some tensors: every node runs once, and what later pieces read is handed on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx
import onnxruntime as ort
from onnx import helper

from repo_builder.core.graphs import outer_reads
from repo_builder.core.tensors import Array
from repo_builder.quantize.observe import open_session, run


class Pieces:
    """The pieces of a graph; what is behind the last is left out.

    Args:
        model: The graph; it may read tensors that nothing makes, which then are given.
        ends: The tensors that each piece ends with, in the graph's order.
    """

    def __init__(self, model: onnx.ModelProto, ends: Sequence[Sequence[str]]) -> None:
        self._model = model
        self._stored = {item.name: item for item in model.graph.initializer}
        self._ends = [tuple(names) for names in ends]
        nodes = list(model.graph.node)
        places = {name: place for place, node in enumerate(nodes) for name in node.output}
        stops = [max(places[name] for name in names) + 1 for names in ends]
        stops = [max(stops[: number + 1]) for number in range(len(stops))]
        self._nodes = [nodes[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
        self._open: tuple[int, ort.InferenceSession] | None = None
        self._rest = [{name for node in nodes[stop:] for name in _reads(node)} for stop in stops]

    def run(self, number: int, given: Mapping[str, Array]) -> dict[str, Array]:
        """Run a piece; return its last tensors, and all that later pieces read.

        Args:
            number: The piece.
            given: What the one before returned (the graph's inputs for the first), and what no node makes.

        Raises:
            QuantizeError: It does not run.
        """
        nodes = self._nodes[number]
        made = [name for node in nodes for name in node.output if name]
        wanted = [name for name in made if name in self._rest[number] or name in self._ends[number]]
        kept = {name: value for name, value in given.items() if name in self._rest[number]}
        kept |= {name: given[name] for name in self._ends[number] if name in given}
        if not wanted:
            return kept
        needed = {name for node in nodes for name in _reads(node)} - set(made)
        feeds = {name: value for name, value in given.items() if name in needed}
        if self._open is None or self._open[0] != number:
            self._open = number, open_session(self._piece(nodes, feeds, wanted), [], optimize=False)
        return kept | run(self._open[1], wanted, feeds)

    def _piece(
        self, nodes: Sequence[onnx.NodeProto], feeds: Mapping[str, Array], wanted: Sequence[str]
    ) -> onnx.ModelProto:
        """Return a model of some nodes."""
        needed = {name for node in nodes for name in _reads(node)}
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
            for name, value in feeds.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in wanted]
        stored = [self._stored[name] for name in sorted(needed & set(self._stored))]
        graph = helper.make_graph(nodes, "piece", inputs, outputs, initializer=stored)
        model = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        model.functions.extend(self._model.functions)
        return model


def _reads(node: onnx.NodeProto) -> Iterable[str]:
    return (name for name in (*node.input, *outer_reads(node)) if name)
