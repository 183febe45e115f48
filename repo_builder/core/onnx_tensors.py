"""The tensors inside an ONNX model: whether they are whole, before anything computes with them; 4-bit ones packed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from repo_builder.core.errors import ModelError, first_line
from repo_builder.core.tensors import Array


def packed_nibbles(codes: Array) -> bytes:
    """Return whole numbers as ONNX stores those of 4 bits: two a byte in row order, the first one low.

    Args:
        codes: −8 to 7 or 0 to 15, any shape.
    """
    flat = np.ascontiguousarray(codes).reshape(-1).view(np.uint8)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    packed = flat[1::2] << 4
    packed |= flat[0::2] & 15
    return packed.tobytes()


def refuse_damaged(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a model with a constant whose values are not what its type and dimensions say.

    Args:
        model: The model, with the weights that lie beside it.
        path: Its file, for the message.

    Raises:
        ModelError: The first tensor that is damaged.
    """
    kinds = onnx.TensorProto.DataType
    for name, tensor in _tensors(model):
        why = _damage(tensor)
        if why is not None:
            kind = kinds.Name(tensor.data_type) if tensor.data_type in kinds.values() else f"type {tensor.data_type}"
            raise ModelError(
                f"the tensor '{name}' is damaged: {kind} {list(tensor.dims)} does not go with its values ({why[:120]})",
                where=str(path),
                hint="export or copy the model again",
            )


def _damage(tensor: onnx.TensorProto) -> str | None:
    """Return what is wrong with a constant, or None."""
    if any(side < 0 for side in tensor.dims):  # numpy takes a negative side for one that it may choose
        return "a dimension is negative"
    try:
        numpy_helper.to_array(tensor)
    except Exception as error:  # onnx, numpy and ml_dtypes each raise their own
        return first_line(error)
    return None


def _tensors(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yield every constant with a name that tells where it is."""
    for function in model.functions:
        yield from _of_nodes(function.node)
    yield from _of_graph(model.graph)


def _of_graph(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for sparse in graph.sparse_initializer:
        yield sparse.values.name, sparse.values
        yield f"{sparse.values.name} (indices)", sparse.indices
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterator[onnx.NodeProto]) -> Iterator[tuple[str, onnx.TensorProto]]:
    for node in nodes:
        for attribute in node.attribute:
            own = f"{node.name or node.op_type}.{attribute.name}"
            for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
                yield own, tensor
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _of_graph(graph)
