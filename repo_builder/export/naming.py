"""What is done to a freshly exported graph: layers get their names, leftovers of the exporter go."""

from __future__ import annotations

from collections import Counter

import onnx

from repo_builder.core.graphs import LAYER_OPS, MOVES, TYPE, WEIGHTLESS_OPS, Graph, rename


def tidy(model: onnx.ModelProto, *, marker_domain: str) -> onnx.ModelProto:
    """Name layers, take out markers and Identity nodes, drop what differs from run to run.

    Args:
        model: The exported graph, changed in place. Nodes of ``marker_domain`` have the attributes ``name`` and
            ``type``: those of the layer whose output they pass on. A layer's node is given both.
        marker_domain: Domain of the markers.

    Returns:
        The graph with the shapes that ONNX infers.
    """
    graph = Graph(model)
    layers: dict[str, tuple[str, str]] = {}  # first output of a node → name and type of the layer that it computes
    for node in model.graph.node:
        if node.domain == marker_domain:
            made = _made_by(graph, node.input[0])
            if made is not None:
                said = {item.name: item.s.decode() for item in node.attribute}
                layers.setdefault(made.output[0], (said["name"], said["type"]))
    _name_layers(model, layers)
    _bypass(model, [node for node in model.graph.node if node.domain == marker_domain])
    _bypass(model, [node for node in model.graph.node if node.op_type == "Identity"])
    for node in model.graph.node:
        node.doc_string = ""
    model.graph.name = "repo_builder"
    kept = [item for item in model.opset_import if item.domain != marker_domain]
    del model.opset_import[:], model.graph.value_info[:]
    model.opset_import.extend(kept)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def _made_by(graph: Graph, tensor: str) -> onnx.NodeProto | None:
    """Return the node that computes a module's output, seen through moves and a bias that is added apart."""
    node = graph.producers.get(tensor)
    while node is not None and node.op_type in MOVES:
        node = graph.producers.get(node.input[0])
    if node is not None and node.op_type == "Add" and any(name in graph.constants for name in node.input):
        before = [graph.producers[name] for name in node.input if name in graph.producers]
        node = next((item for item in before if item.op_type == "MatMul"), node)
    return node if node is not None and node.op_type in LAYER_OPS | WEIGHTLESS_OPS else None


def _name_layers(model: onnx.ModelProto, layers: dict[str, tuple[str, str]]) -> None:
    runs: Counter[str] = Counter()
    for node in model.graph.node:
        if node.output[0] not in layers:
            continue
        layer, kind = layers[node.output[0]]
        runs[layer] += 1
        node.name = layer if runs[layer] == 1 else f"{layer}#{runs[layer]}"
        node.metadata_props.add(key=TYPE, value=kind)


def _bypass(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Take out nodes that pass on their input, and hand it to their readers.

    One that lies between an input and an output of the graph stays, as an Identity.
    """
    renamed: dict[str, str] = {}
    outputs = {item.name for item in model.graph.output}
    made = {name for node in model.graph.node for name in node.output}
    for node in nodes:
        source, target = renamed.get(node.input[0], node.input[0]), node.output[0]
        if target not in outputs:
            renamed[target] = source
        elif source in made and source not in outputs:
            renamed[source] = target
            renamed.update({key: target for key, value in renamed.items() if value == source})
        else:
            node.CopyFrom(onnx.helper.make_node("Identity", [source], [target], name=node.name))
            continue
        model.graph.node.remove(node)
    rename(model.graph.node, renamed)
