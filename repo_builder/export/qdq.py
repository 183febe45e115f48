"""Q/DQ in ONNX: a linter for what TensorRT parses, and the precision of every layer. onnx only; works on any file.

TensorRT 8.5 takes quantization only as QuantizeLinear followed by DequantizeLinear with a zero point of type int8 that
is 0, a constant fp32 scale above 0 and, per channel, an axis that is written out; weights are fp32 initializers behind
such a pair. Later versions take more, but all take this. What has fp8 (E4M3) takes its codes as stored weights, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from repo_builder.core.errors import ExportError, first_line
from repo_builder.core.graphs import BLOCKED_OPS, DQ, DYNAMIC_OPS, LAYER_OPS, Graph, Q, layer_of, opset
from repo_builder.core.recipe import Precision

__all__ = ["Finding", "check", "layer_of", "layer_precisions", "lint"]

# a weight's type → what its layer is, whatever its input is for the first two
_STORED: dict[int, Precision] = {TensorProto.INT4: "int4", TensorProto.UINT4: "int4", TensorProto.FLOAT16: "fp16"}
OLDEST_OPSET = 13  # per-channel QuantizeLinear
_CODES = (TensorProto.INT8, TensorProto.FLOAT8E4M3FN)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that TensorRT would refuse or misread.

    Attributes:
        node: The node's name, or the tensor's, or ``model``.
        message: What is wrong with it.
    """

    node: str
    message: str

    def __str__(self) -> str:
        """Return ``node: message``."""
        return f"{self.node}: {self.message}"


def lint(model: onnx.ModelProto, *, newest_opset: int | None = None) -> tuple[Finding, ...]:
    """Return what keeps a graph's Q/DQ from being taken by every TensorRT since 8.5, in graph order.

    Args:
        model: Any ONNX model.
        newest_opset: The newest opset that the target parses (17 for TensorRT 8.5); None accepts all.
    """
    graph = Graph(model)
    findings = [*_model_findings(model, newest_opset)]
    for node in model.graph.node:
        if node.op_type in (Q, DQ):
            findings.extend(Finding(node=node.name or node.output[0], message=text) for text in _pair(graph, node))
    return tuple(findings)


def check(path: Path, *, strict: bool, newest_opset: int | None = None) -> None:
    """Check a file with ONNX's own checker, and with ``lint`` where TensorRT is to parse it.

    Args:
        path: The ONNX file.
        strict: Whether its Q/DQ has to be what every TensorRT takes.
        newest_opset: As for ``lint``.

    Raises:
        ExportError: It is not valid ONNX, or has findings; they are listed.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path) if strict else None
    except Exception as error:  # onnx's and protobuf's errors share no base class
        raise ExportError(f"is not valid ONNX: {first_line(error)}", where=str(path)) from error
    findings = () if model is None else lint(model, newest_opset=newest_opset)
    if findings:
        listed = "; ".join(map(str, findings[:5])) + (f"; and {len(findings) - 5} more" if len(findings) > 5 else "")
        raise ExportError(f"its Q/DQ is not what TensorRT takes: {listed}", where=str(path))


def layer_precisions(model: onnx.ModelProto) -> dict[str, Precision]:
    """Read back each layer's precision, in graph order.

    A layer with a weight is int8 or fp8 where its input and its weight come from a DequantizeLinear of such codes, int4
    where its weight does and has 4 bits, fp16 where its weight is an fp16 tensor. Pooling and Add are listed only where
    all their inputs come from a DequantizeLinear.
    """
    graph = Graph(model)
    found: dict[str, Precision] = {}
    for node in model.graph.node:
        layer = layer_of(node)
        if layer is None:
            continue
        if node.op_type in DYNAMIC_OPS:
            found[layer] = "int8"
            continue
        if node.op_type in BLOCKED_OPS:
            found[layer] = "int4"
            continue
        weight = graph.weight(node)
        inputs = node.input[:2] if node.op_type in LAYER_OPS | {"Add"} else node.input[:1]
        stored = None if weight is None else _STORED.get(graph.constants[weight].data_type, "fp32")
        codes = {graph.codes(name) for name in inputs}
        if stored != "int4" and None not in codes:
            found[layer] = "fp8" if codes == {"fp8"} else "int8"
        elif stored is not None:
            found[layer] = stored
    return found


def _model_findings(model: onnx.ModelProto, newest_opset: int | None) -> Iterator[Finding]:
    version = opset(model)
    if version < OLDEST_OPSET:
        yield Finding(node="model", message=f"opset {version} has no per-channel Q/DQ; it takes {OLDEST_OPSET}")
    if newest_opset is not None and version > newest_opset:
        yield Finding(node="model", message=f"opset {version} is newer than {newest_opset}")
    for item in model.graph.initializer:
        if item.data_type == TensorProto.DOUBLE:
            yield Finding(node=item.name, message="a double tensor")
    for node in model.graph.node:
        for attribute in node.attribute:
            constant = attribute.name == "value" and attribute.t.data_type == TensorProto.DOUBLE
            if constant or (node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.DOUBLE):
                yield Finding(node=node.name or node.output[0], message="a double tensor")


def _pair(graph: Graph, node: onnx.NodeProto) -> Iterator[str]:
    """Yield what is wrong with one Q or DQ."""
    if len(node.input) != 3 or not node.input[2]:
        yield "has no zero point; TensorRT takes three inputs"
        return
    scale, zero = graph.value(node.input[1]), graph.value(node.input[2])
    if scale is None or zero is None:
        yield "its scale or zero point is computed, not constant"
        return
    if scale.dtype != np.float32:
        yield f"its scale is {scale.dtype}, not float32"
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        yield "its scale is not above 0 everywhere"
    kind = graph.constants[node.input[2]].data_type
    if kind not in _CODES:
        yield f"its zero point is {zero.dtype}, not int8"
    if zero.astype(np.float32).any():
        yield "its zero point is not 0"
    if zero.size != scale.size:
        yield f"it has {scale.size} scales and {zero.size} zero points"
    if scale.size > 1 and not any(attribute.name == "axis" for attribute in node.attribute):
        yield "its scale is per channel and no axis is written out"
    if node.op_type == DQ and node.input[0] in graph.constants and kind == TensorProto.INT8:
        yield "dequantizes stored integers; TensorRT 8.5 takes an fp32 initializer behind QuantizeLinear"
    if node.op_type == Q and not _dequantized_alike(graph, node):
        yield "is not followed by DequantizeLinear nodes with its own scale"


def _dequantized_alike(graph: Graph, node: onnx.NodeProto) -> bool:
    readers = graph.consumers[node.output[0]]
    scale = graph.value(node.input[1])
    same = (
        reader.op_type == DQ and np.array_equal(np.asarray(graph.value(reader.input[1])), np.asarray(scale))
        for reader in readers
    )
    return bool(readers) and all(same)
