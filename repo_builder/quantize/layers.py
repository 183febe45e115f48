"""What the layers of a graph are called in rules: one list for a module from torch and for a file from elsewhere.

A layer's name is its node's, which in a graph from torch is the module's. Its type is the name that torch has for it
(``Conv2d`` by the rank, ``Linear`` for Gemm and MatMul with a constant weight); rules may say the operator (``Conv``,
``Gemm``) and the module's class, too. A MatMul of two activations, as in attention, is a ``MatMul``; a sum of two is an
``Add``, whether a module or ``x + y`` makes it.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from repo_builder.core.graphs import LAYER_OPS, TYPE, layer_of, own
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.rules import WEIGHTED, WEIGHTLESS, Layer

_POOLS = {"MaxPool": "MaxPool", "AveragePool": "AvgPool", "GlobalAveragePool": "AdaptiveAvgPool"}
ADD_OF_CONSTANT = "Add of a constant"


def find_layers(model: onnx.ModelProto) -> Iterator[Layer]:
    """Yield each node's layer: its name, its type, and other names that select it. A layer that runs twice comes once.

    Args:
        model: What ``prepare`` returns.
    """
    index = Index(model)
    seen: set[str] = set()
    for node in index.nodes:
        name = (layer_of(node) if own(node) else None) or node.name or node.output[0]
        if name in seen:
            continue
        seen.add(name)
        said = next((item.value for item in node.metadata_props if item.key == TYPE), "")
        derived = _derived(index, node)
        known = said in WEIGHTED | WEIGHTLESS and (said in WEIGHTED) == (derived in WEIGHTED)
        kind = said if known and derived != ADD_OF_CONSTANT else derived
        yield (name, *dict.fromkeys(item for item in (kind, derived, node.op_type, said) if item))


def _derived(index: Index, node: onnx.NodeProto) -> str:
    """Return a node's type as torch calls it."""
    kind = node.op_type
    if not own(node):
        return f"{node.domain}.{kind}"
    if kind in LAYER_OPS and len(node.input) > 1:
        weight = index.value(node.input[1])
        if kind in ("Conv", "ConvTranspose"):
            return f"{kind}{(weight.ndim if weight is not None else _rank(index.model, node.input[0])) - 2}d"
        return "Linear" if weight is not None and weight.ndim == 2 else "MatMul"
    if kind in _POOLS:
        return f"{_POOLS[kind]}{_rank(index.model, node.input[0]) - 2}d"
    if kind == "Add" and any(index.constant(name) for name in node.input):
        return ADD_OF_CONSTANT
    return kind


def _rank(model: onnx.ModelProto, tensor: str) -> int:
    """Return the rank of a tensor as shapes were inferred, 4 where they were not."""
    for item in (*model.graph.value_info, *model.graph.input):
        if item.name == tensor and item.type.tensor_type.HasField("shape"):
            return len(item.type.tensor_type.shape.dim)
    return 4
