"""A graph in an older operator set: for targets that do not read the one in which it was written.

onnx's own converter leaves out metadata, in which layers' types stand, and stops at sizes that it does not know. What
torch.export writes differs in few ways from an older set: attributes that have their default, axes that are an input,
and counts of parts. What has no older form is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper

from repo_builder.core.errors import ExportError
from repo_builder.core.graphs import ONNX_DOMAINS, bodies, opset
from repo_builder.core.tensors import Array

Constants = dict[str, Array]


def lowered(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """Return a graph at an operator set that is no newer than its own; the graph itself where that is its own.

    Args:
        model: The graph, its shapes inferred; changed.
        version: The version wanted.

    Raises:
        ExportError: An operator has no form there.
    """
    if opset(model) <= version:
        return model
    constants = _constants(model.graph)
    sizes = _sizes(model.graph)
    for node in _all_nodes(model.graph):
        if node.domain not in ONNX_DOMAINS:
            raise ExportError(f"{node.domain}.{node.op_type} ({node.name}) is no operator of ONNX")
        _lower(node, constants, sizes, opset(model), version)
    for item in model.opset_import:
        if item.domain in ONNX_DOMAINS:
            item.version = version
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def _constants(graph: onnx.GraphProto) -> Constants:
    """Return the constants of a graph and of the bodies in it; no two of them share a name."""
    found = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                found[node.output[0]] = numpy_helper.to_array(attribute.t)
        for body in bodies(node):
            found.update(_constants(body))
    return found


def _all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    found = []
    for node in graph.node:
        found.append(node)
        for body in bodies(node):
            found += _all_nodes(body)
    return found


def _lower(node: onnx.NodeProto, constants: Constants, sizes: dict[str, list[int]], now: int, version: int) -> None:
    """Write one node as the older set has it."""
    new = defs.get_schema(node.op_type, now)
    try:
        old = defs.get_schema(node.op_type, version)
    except defs.SchemaError:
        old = None
    if old is None:
        raise ExportError(f"{node.op_type} ({node.name}) has no form before opset {new.since_version}")
    if new.since_version == old.since_version:
        return
    _drop_defaults(node, new, old)
    row = _ROWS.get(node.op_type)
    if row is not None:
        row(node, constants, sizes)
    unknown = [item.name for item in node.attribute if item.name not in old.attributes]
    if unknown or len(node.input) > old.max_input or _newer_value(node, version):
        what = ", ".join(unknown) or f"{len(node.input)} inputs"
        raise ExportError(f"{node.op_type} ({node.name}) with {what} has no form at opset {version}")


def _drop_defaults(node: onnx.NodeProto, new: defs.OpSchema, old: defs.OpSchema) -> None:
    """Leave out attributes that the older set does not know and that say what is so anyway."""
    for item in list(node.attribute):
        known = new.attributes.get(item.name)
        if item.name in old.attributes or known is None or known.default_value.type == onnx.AttributeProto.UNDEFINED:
            continue
        if helper.get_attribute_value(item) == helper.get_attribute_value(known.default_value):
            node.attribute.remove(item)


def _newer_value(node: onnx.NodeProto, version: int) -> bool:
    """Whether an attribute that both sets know has a value that only the newer one does."""
    said = next((item.s for item in node.attribute if item.name == "reduction"), b"none")
    return node.op_type.startswith("Scatter") and version < 18 and said in (b"max", b"min")


def _axes_as_attribute(node: onnx.NodeProto, constants: Constants, _sizes: dict[str, list[int]]) -> None:
    """Write a reduction's axes, an input from opset 18 on, as an attribute."""
    attributes = {item.name: item for item in node.attribute}
    nothing = attributes.get("noop_with_empty_axes")
    if len(node.input) < 2 or not node.input[1]:
        if nothing is not None and nothing.i:
            raise ExportError(f"{node.op_type} ({node.name}) over no axes has no older form")
    else:
        axes = constants.get(node.input[1])
        if axes is None:
            raise ExportError(f"{node.op_type} ({node.name}) over axes that are computed has no older form")
        node.attribute.append(helper.make_attribute("axes", [int(axis) for axis in np.ravel(axes)]))
    if nothing is not None:
        node.attribute.remove(nothing)
    del node.input[1:]


def _even_parts(node: onnx.NodeProto, _values: Constants, sizes: dict[str, list[int]]) -> None:
    """Leave out the number of parts: the outputs tell it where all are alike."""
    attributes = {item.name: item for item in node.attribute}
    if "num_outputs" not in attributes:
        return
    shape = sizes.get(node.input[0])
    axis = attributes["axis"].i if "axis" in attributes else 0
    if not shape or shape[axis] < 1 or shape[axis] % len(node.output):
        raise ExportError(f"Split ({node.name}) into parts that may differ has no older form")
    node.attribute.remove(attributes["num_outputs"])


def _reshape(node: onnx.NodeProto, constants: Constants, _sizes: dict[str, list[int]]) -> None:
    """Leave out that a 0 means no elements, where none stands in the shape."""
    shape = constants.get(node.input[1])
    for item in list(node.attribute):
        if item.name == "allowzero" and shape is not None and not (shape == 0).any():
            node.attribute.remove(item)


def _sizes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """Return shapes of tensors, -1 for what is not known."""
    stored = {item.name: list(item.dims) for item in graph.initializer}
    return stored | {
        item.name: [dim.dim_value if dim.HasField("dim_value") else -1 for dim in item.type.tensor_type.shape.dim]
        for item in (*graph.value_info, *graph.input)
        if item.type.tensor_type.HasField("shape")
    }


_Row = Callable[[onnx.NodeProto, Constants, dict[str, list[int]]], None]
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
# What is more to do than to leave out defaults.
_ROWS: dict[str, _Row] = {
    **{f"Reduce{kind}": _axes_as_attribute for kind in _REDUCTIONS},
    "Split": _even_parts,
    "Reshape": _reshape,
}
