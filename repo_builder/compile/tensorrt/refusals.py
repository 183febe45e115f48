"""What TensorRT's ONNX parser takes in no version, told from the graph alone, on a machine without TensorRT or a GPU.

After NVIDIA's "Supported ONNX Operators" (onnx-tensorrt, docs/operators.md). What only some versions take, or only with
certain attributes, is left to the parser of the machine that compiles.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from repo_builder.core.graphs import own

_TYPES = {
    TensorProto.DOUBLE: "double tensors are cast to float, which changes results",
    TensorProto.STRING: "strings",
    TensorProto.COMPLEX64: "complex numbers",
    TensorProto.COMPLEX128: "complex numbers",
}
_DYNAMIC = "int8 with ranges found while it runs; give the layers calibrated int8 instead"
_INTEGER = "int8 operators in ONNX Runtime's own form; bring the fp32 model and let rules say what is int8"
# Operator → why no version takes it.
_OPERATORS = {
    "DynamicQuantizeLinear": _DYNAMIC,
    "MatMulInteger": _DYNAMIC,
    "ConvInteger": _DYNAMIC,
    "QLinearConv": _INTEGER,
    "QLinearMatMul": _INTEGER,
    "StringNormalizer": "strings",
    "TfIdfVectorizer": "strings",
    **dict.fromkeys(
        ("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SplitToSequence"),
        "sequences of tensors",
    ),
    **dict.fromkeys(("Multinomial", "Unique"), "no implementation"),
}


def refusals(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return a sentence for each kind of node that no TensorRT takes, naming the first; empty where none is known.

    Args:
        model: Any ONNX model. Nodes of a domain that the model brings functions for are not judged.
    """
    functions = {item.domain for item in model.functions}
    found: dict[str, str] = {}
    for node in _nodes(model.graph):
        if not own(node):
            if node.domain not in functions:
                found.setdefault(f"{node.domain}.{node.op_type}", _sentence(node, f"operators of {node.domain}"))
        elif node.op_type in _OPERATORS:
            found.setdefault(node.op_type, _sentence(node, _OPERATORS[node.op_type]))
    for item in (*model.graph.input, *model.graph.output):
        why = _TYPES.get(item.type.tensor_type.elem_type)
        if why:
            found.setdefault(why, f"the tensor '{item.name}': {why}")
    return tuple(found.values())


def _sentence(node: onnx.NodeProto, why: str) -> str:
    return f"the node '{node.name or node.output[0]}' ({node.op_type}): {why}"


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
