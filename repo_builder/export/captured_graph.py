"""What is done to a graph that torch.export gave, so that it reads like one of the older exporter.

Nodes are named after the module that they are in, as in ``/body/body.2/Add_1``, dimensions after their tensor;
parameters bear the names that they have in the module. What tells of the machine goes. An average over all of an image,
which torch.export takes apart into a mean, is one GlobalAveragePool again: runtimes have it in int8.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping, Sequence

import onnx
from onnx import helper

from repo_builder.core.graphs import Graph, attribute, rename
from repo_builder.export.marks import DOMAIN

_SCOPES = "pkg.torch.onnx.name_scopes"
_ROOT = "module"
Axes = Mapping[str, Mapping[int, str]]


def clean(model: onnx.ModelProto, outputs: Sequence[str], axes: Axes) -> None:
    """Rename and simplify, in place.

    Args:
        model: As torch.export and onnxscript give it, markers in it.
        outputs: Names of the outputs; torch.export gives a tensor that is returned twice one of them.
        axes: Tensor → axis that varies → its name.
    """
    _name_nodes(model.graph)
    _name_outputs(model.graph, outputs)
    _name_parameters(model)
    _name_dimensions(model.graph, axes)
    _whole_means(model)
    _forget(model)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Name nodes after the module that they are in and their operator, counted as the older exporter counts them."""
    counts: Counter[str] = Counter()
    for node in graph.node:
        said = next((item.value for item in node.metadata_props if item.key == _SCOPES), "[]")
        stem = "/".join(["", *_segments(ast.literal_eval(said)[:-1]), node.op_type])
        node.name = f"{stem}_{counts[stem]}" if counts[stem] else stem
        counts[stem] += 1


def _name_outputs(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    for value, name in zip(graph.output, names, strict=True):
        if value.name != name:
            graph.node.append(helper.make_node("Identity", [value.name], [name], name=f"/{name}"))
            value.name = name


def _segments(scopes: list[str]) -> list[str]:
    """Return ``body``, ``body.2`` and ``norm`` for the modules ``module``, ``module.body``, ``module.body.2``, ..."""
    found: list[str] = []
    before = _ROOT
    for scope in scopes:
        if not scope.startswith(f"{_ROOT}.") or scope == before:
            continue
        own = scope.removeprefix(f"{before}.")
        found.append(f"{found[-1]}.{own}" if own[:1].isdigit() and found else own)
        before = scope
    return found


def _name_parameters(model: onnx.ModelProto) -> None:
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    names = {}
    for item in model.graph.initializer:
        wanted = item.name.removeprefix(f"{_ROOT}.")
        if wanted != item.name and wanted not in taken:
            names[item.name] = item.name = wanted
    outer = {f"{_ROOT}.{name}": name for name in names.values()}
    rename(model.graph.node, outer)
    for value in model.graph.value_info:
        value.name = outer.get(value.name, value.name)


def _name_dimensions(graph: onnx.GraphProto, axes: Axes) -> None:
    """Name what varies as it is called elsewhere; dimensions that are always equal keep one name."""
    known: dict[str, str] = {}
    for value in (*graph.input, *graph.output):
        wanted = axes.get(value.name, {})
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            if not dimension.HasField("dim_param"):
                continue
            symbol = dimension.dim_param
            name = wanted.get(axis, f"{value.name}_{axis}")
            dimension.dim_param = name if name == "batch" else known.setdefault(symbol, name)


def _whole_means(model: onnx.ModelProto) -> None:
    """Turn the mean that an AdaptiveAvgPool to one value became into a GlobalAveragePool."""
    graph = Graph(model)
    ranks = {
        item.name: len(item.type.tensor_type.shape.dim)
        for item in (*model.graph.value_info, *model.graph.input)
        if item.type.tensor_type.HasField("shape")
    }
    for mark in [item for item in model.graph.node if item.domain == DOMAIN]:
        kind = next(item.s.decode() for item in mark.attribute if item.name == "type")
        squeeze = graph.producers.get(mark.input[0])
        if not kind.startswith("AdaptiveAvgPool") or squeeze is None:
            continue
        node = graph.producers.get(squeeze.input[0]) if squeeze.op_type == "Squeeze" else squeeze
        if node is None or node.op_type != "ReduceMean" or not _keeps(node):
            continue
        source, spatial = node.input[0], int(kind[-2])
        before = graph.producers.get(source)
        if node is not squeeze:  # of one dimension: as an image of one row
            if before is None or before.op_type != "Unsqueeze" or ranks.get(before.input[0]) != spatial + 2:
                continue
            node.input[0], node.output[0] = before.input[0], squeeze.output[0]
            model.graph.node.remove(squeeze)
            if len(graph.consumers[source]) == 1:
                model.graph.node.remove(before)
        elif ranks.get(source) != spatial + 2 or not _over_last(graph, node, spatial, spatial + 2):
            continue
        node.op_type = "GlobalAveragePool"
        node.name = node.name.replace("ReduceMean", "GlobalAveragePool")
        del node.input[1:], node.attribute[:]


def _keeps(node: onnx.NodeProto) -> bool:
    return attribute(node, "keepdims", 1) == 1


def _over_last(graph: Graph, node: onnx.NodeProto, count: int, rank: int) -> bool:
    axes = graph.value(node.input[1]) if len(node.input) > 1 else None
    return axes is not None and sorted(int(axis) % rank for axis in axes) == list(range(rank - count, rank))


def _forget(model: onnx.ModelProto) -> None:
    """Drop what tells where and how the graph was made."""
    graph = model.graph
    for owner in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        owner.doc_string = ""
        del owner.metadata_props[:]
    model.producer_name, model.producer_version = "pytorch", ""
