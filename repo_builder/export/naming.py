"""What is done to a freshly exported graph: layers get their names, leftovers of the exporter go."""

from __future__ import annotations

import re
from collections import Counter

import onnx

from repo_builder.core.graphs import DQ, LAYER_OPS, MOVES, WEIGHTLESS_OPS, Graph, Q

_QUANTIZER = re.compile(
    r"^(?P<layer>.+)\.(?:input_quantizers\.(?P<input>\d+)|parametrizations\.weight\.\d+)\.(?P<what>\w+)$"
)
_ORIGINAL = ".parametrizations.weight.original"


def tidy(model: onnx.ModelProto, *, marker_domain: str) -> onnx.ModelProto:
    """Name layers and their quantizers, take out markers and Identity nodes, drop what differs from run to run.

    Args:
        model: The exported graph, changed in place. Nodes of ``marker_domain`` have an attribute ``name``: the layer
            whose output they pass on.
        marker_domain: Domain of the markers.

    Returns:
        The graph with the shapes that ONNX infers.
    """
    graph = Graph(model)
    layers: dict[str, str] = {}  # first output of a node → the layer that it computes
    for node in model.graph.node:
        if node.domain == marker_domain:
            made = _made_by(graph, node.input[0])
            if made is not None:
                layers.setdefault(made.output[0], node.attribute[0].s.decode())
    _name_layers(model, layers)
    _bypass(model, [node for node in model.graph.node if node.domain == marker_domain])
    _own_constants(model)
    _bypass(model, [node for node in model.graph.node if node.op_type == "Identity"])
    _name_quantizers(model)
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


def _name_layers(model: onnx.ModelProto, layers: dict[str, str]) -> None:
    runs: Counter[str] = Counter()
    for node in model.graph.node:
        layer = layers.get(node.output[0])
        if layer is not None:
            runs[layer] += 1
            node.name = layer if runs[layer] == 1 else f"{layer}#{runs[layer]}"


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
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = renamed.get(name, name)


def _own_constants(model: onnx.ModelProto) -> None:
    """Give each quantizer a scale and a zero point of its own: the exporter shares equal ones by Identity nodes."""
    values = {item.name: item for item in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type == "Identity" and node.input[0] in values and _QUANTIZER.match(node.output[0]):
            own = model.graph.initializer.add()
            own.CopyFrom(values[node.input[0]])
            own.name = node.output[0]
            model.graph.node.remove(node)


def _name_quantizers(model: onnx.ModelProto) -> None:
    """Name Q and DQ nodes, scales and weights by their layer."""
    renamed = {item.name: _plain_name(item.name) for item in model.graph.initializer}
    for item in model.graph.initializer:
        item.name = renamed[item.name]
    runs: Counter[str] = Counter()
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        if node.op_type in (Q, DQ) and node.input[1].endswith("_scale"):
            name = f"{node.input[1].removesuffix('_scale')}/{node.op_type}"
            runs[name] += 1
            node.name = name if runs[name] == 1 else f"{name}#{runs[name]}"


def _plain_name(name: str) -> str:
    """Return ``layer.input_scale`` for ``layer.input_quantizers.0.scale``, and so on."""
    if name.endswith(_ORIGINAL):
        return f"{name.removesuffix(_ORIGINAL)}.weight"
    found = _QUANTIZER.match(name)
    if found is None:
        return name
    tensor = "weight" if found["input"] is None else "input" if found["input"] == "0" else f"input{found['input']}"
    return f"{found['layer']}.{tensor}_{found['what']}"
