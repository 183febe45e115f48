"""Quantizing a model that arrives as ONNX: the rules, calibrators and table of the torch way, on nodes.

A layer is a Conv, ConvTranspose, Gemm or MatMul whose weight is constant, or, where asked for, a pooling or an Add of
two activations. Its type in rules is the name torch has for it (``Conv2d`` by the weight's rank, ``Linear`` for Gemm
and MatMul) or the operator's own (``Conv``, ``Gemm``); its name is the node's. Ranges are found by running the fp32
graph in ONNX Runtime, optimizations off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx

from repo_builder.core.graphs import Graph
from repo_builder.core.recipe import QuantizeSpec
from repo_builder.core.records import LayerRecord
from repo_builder.core.tensors import Array
from repo_builder.quantize import plan
from repo_builder.quantize.onnx_calibrate import batches_for, calibrate, signal_to_noise
from repo_builder.quantize.onnx_insert import checked, insert
from repo_builder.quantize.onnx_prepare import prepare
from repo_builder.quantize.table import check_inputs, record

_POOLS = {"MaxPool": "MaxPool", "AveragePool": "AvgPool", "GlobalAveragePool": "AdaptiveAvgPool"}


@dataclass(frozen=True, kw_only=True)
class QuantizedOnnx:
    """A model with Q/DQ.

    Attributes:
        model: The model; its fp16 layers are still fp32 (``export.precision`` makes the regions).
        layers: The per-layer table.
        fp16_layers: Layers that are to become fp16.
    """

    model: onnx.ModelProto
    layers: tuple[LayerRecord, ...]
    fp16_layers: frozenset[str]


def quantize_onnx(model: onnx.ModelProto, spec: QuantizeSpec, calibration: Mapping[str, Array]) -> QuantizedOnnx:
    """Quantize an fp32 ONNX model as the rules say; deterministic, and ``model`` is not changed.

    ``spec.backend`` plays no part: both back ends work on torch modules.

    Args:
        model: The model, opset 13 or later (older ones are converted).
        spec: The layer rules.
        calibration: Samples by input name, batch first.

    Raises:
        RecipeError: A rule selects nothing.
        QuantizeError: The model cannot be converted or run, or a layer cannot be quantized as asked.
    """
    prepared = prepare(model)
    batches = batches_for(prepared, calibration, spec.batch_size)
    plans = plan(list(find_layers(prepared)), spec)
    int8 = {item.name: item for item in plans if item.precision == "int8"}
    ranges = calibrate(prepared, int8, batches) if int8 else {}
    check_inputs(ranges)
    ratios = signal_to_noise(prepared, ranges, batches) if int8 else {}
    return QuantizedOnnx(
        model=checked(insert(prepared, ranges)),
        layers=tuple(record(item, ranges.get(item.name), ratios.get(item.name)) for item in plans),
        fp16_layers=frozenset(item.name for item in plans if item.precision == "fp16"),
    )


def find_layers(model: onnx.ModelProto) -> Iterator[tuple[str, ...]]:
    """Yield each node's name, its type as torch calls it, and its operator where rules may say that too."""
    graph = Graph(model)
    for node in model.graph.node:
        kind = node.op_type
        weight = graph.constants.get(graph.weight(node) or "")
        if weight is not None and kind in ("Conv", "ConvTranspose"):
            yield node.name, f"{kind}{len(weight.dims) - 2}d", kind
        elif weight is not None and len(weight.dims) == 2:
            yield node.name, "Linear", kind
        elif kind in _POOLS:
            yield node.name, f"{_POOLS[kind]}{_rank(model, node.input[0]) - 2}d", kind
        elif kind == "Add" and any(name in graph.constants for name in node.input):
            yield node.name, "Add of a constant"
        else:
            yield node.name, kind


def _rank(model: onnx.ModelProto, tensor: str) -> int:
    """Return the rank of a tensor as shapes were inferred, 4 where they were not."""
    for item in (*model.graph.value_info, *model.graph.input):
        if item.name == tensor and item.type.tensor_type.HasField("shape"):
            return len(item.type.tensor_type.shape.dim)
    return 4
