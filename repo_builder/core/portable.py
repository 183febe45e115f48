"""What makes an ONNX file load in more servers: known sizes stand in it, and its version is no newer than need be."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto

from repo_builder.core.tensors import TensorSpec

# IR version → what it brought that an operator set's version does not ask for
_BROUGHT_TYPES: dict[int, set[int]] = {
    9: {TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ},
    10: {TensorProto.UINT4, TensorProto.INT4},
    11: {getattr(TensorProto, "FLOAT4E2M1", -1)},
}
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_FREE_INITIALIZERS = 4  # the IR version from which on initializers need not be inputs
_FUNCTIONS = 8  # the IR version from which on a model may hold functions of its own
_METADATA = 10  # from which on nodes and graphs may hold metadata


def make_portable(model: onnx.ModelProto, outputs: Sequence[TensorSpec]) -> None:
    """Fix sizes of outputs and lower the IR version, in place.

    Triton's onnxruntime backend compares an output's dims exactly: a symbol where config.pbtxt has a size is refused,
    and exporters leave symbols for sizes that they could not find. Files of a newer IR version are refused by older
    versions of ONNX Runtime, though the operator set would do.

    Args:
        model: The model.
        outputs: What the recipe says of its outputs, batch left out where there is one.
    """
    known = {item.name: item for item in outputs}
    for value in model.graph.output:
        if value.name in known and value.type.tensor_type.HasField("shape"):
            _fix(value.type.tensor_type.shape, known[value.name])
    model.ir_version = min(model.ir_version, needed_ir_version(model))


def needed_ir_version(model: onnx.ModelProto) -> int:
    """Return the oldest IR version that holds the model; its own where that is not known."""
    try:
        standard = [item for item in model.opset_import if item.domain in _DOMAINS]
        needed: int = max(_FREE_INITIALIZERS, onnx.helper.find_min_ir_version_for(standard))
    except ValueError:  # an operator set newer than the installed onnx
        return int(model.ir_version)
    graph = model.graph
    types = {item.data_type for item in graph.initializer}
    types |= {item.type.tensor_type.elem_type for item in (*graph.input, *graph.output, *graph.value_info)}
    if model.functions:
        needed = max(needed, _FUNCTIONS)
    if graph.metadata_props or any(node.metadata_props for node in graph.node):
        needed = max(needed, _METADATA)
    return max(needed, *(version for version, brought in _BROUGHT_TYPES.items() if brought & types), needed)


def _fix(shape: onnx.TensorShapeProto, spec: TensorSpec) -> None:
    """Write sizes over symbols; a dimension more than the spec has is the one that counts samples."""
    sizes = list(spec.shape)
    if len(shape.dim) == len(sizes) + 1:
        sizes.insert(max(0, spec.batch_axis), -1)
    if len(shape.dim) != len(sizes):
        return
    for dimension, size in zip(shape.dim, sizes, strict=True):
        if size > 0 and not dimension.HasField("dim_value"):
            dimension.dim_value = size
