"""Products with 4-bit weights as ONNX Runtime's CPU computes them: com.microsoft.MatMulNBits.

ONNX Runtime 1.32 makes the same operator of DequantizeLinear with ``block_size`` and MatMul by itself, at the accuracy
level of a session option that Triton's backend does not set (4, int8, by default). Written into the file, the level
is the recipe's in every server, a weight that two products share is no exception (ONNX Runtime leaves those apart), and
servers whose ONNX Runtime fuses nothing are as fast.

What it takes (docs/ContribOperators.md, MatMulNBits): weights uint8 (outputs, blocks, block / 2), codes from 0 to 15
with the earlier input in the low half; scales (outputs · blocks); zero points packed likewise, each output's from a
byte of its own, 8 where they are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core import onnx_files
from repo_builder.core.graphs import DQ, Graph, attribute, free_name, own, with_nodes
from repo_builder.core.tensors import Array

DOMAIN = "com.microsoft"
# What products are computed in → the operator's accuracy_level.
ACCURACY_LEVELS: Mapping[Literal["int8", "fp32"], int] = {"fp32": 1, "int8": 4}
_MIDDLE = 8  # the unsigned code of 0 where there is no zero point
_FOUR_BITS = (TensorProto.INT4, TensorProto.UINT4)


def finish(placed: Path, model: Path, compute: Literal["int8", "fp32"]) -> None:
    """Write what is served of a placed graph.

    Args:
        placed: The graph's file, which may be ``model`` itself; another is removed where the two would be alike.
        model: The file that is written.
        compute: What products with 4-bit weights are computed in.
    """
    graph = onnx_files.load(placed)
    blocks = has_blocks(graph)
    if blocks or placed != model:
        onnx_files.save(lowered(graph, compute) if blocks else graph, model)
    if placed != model and not blocks:
        onnx_files.remove(placed)


def has_blocks(model: onnx.ModelProto) -> bool:
    """Whether a graph has weights that ``lowered`` rewrites."""
    graph = Graph(model)
    return any(_weight(graph, node) is not None for node in model.graph.node)


def lowered(model: onnx.ModelProto, compute: Literal["int8", "fp32"]) -> onnx.ModelProto:
    """Return a placed graph with MatMulNBits for each MatMul whose weight is 4-bit codes; names stay.

    Args:
        model: The graph; it is not changed.
        compute: What the products are computed in.
    """
    graph, taken = Graph(model), {item.name for item in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    stored: dict[str, onnx.TensorProto] = {}
    packed: dict[str, list[str]] = {}
    rewritten = set()
    for node in model.graph.node:
        weight = _weight(graph, node)
        if weight is None:
            nodes.append(node)
            continue
        if weight.output[0] not in packed:  # a weight that several layers share is stored once
            packed[weight.output[0]] = _store(graph, weight, stored, taken)
        rewritten.add(weight.output[0])
        nodes.append(_node(graph, node, weight, packed[weight.output[0]], ACCURACY_LEVELS[compute]))
    read = {name for node in nodes for name in node.input} | {item.name for item in model.graph.output}
    kept = [node for node in nodes if not (node.op_type == DQ and node.output[0] in rewritten - read)]
    made = with_nodes(model, kept, stored.values())
    if rewritten and not any(item.domain == DOMAIN for item in made.opset_import):
        made.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return made


def _weight(graph: Graph, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """Return the DequantizeLinear that a MatMul's weight of 4-bit codes comes out of; None where there is none."""
    if node.op_type != "MatMul" or not own(node):
        return None
    maker = graph.producers.get(node.input[1])
    if maker is None or maker.op_type != DQ or not _setting(maker, "block_size"):
        return None
    codes = graph.constants.get(maker.input[0])
    fits = codes is not None and codes.data_type in _FOUR_BITS and len(codes.dims) == 2
    return maker if fits and _setting(maker, "axis") == 0 else None


def _setting(node: onnx.NodeProto, name: str) -> int:
    return int(attribute(node, name, 0))


def _store(graph: Graph, weight: onnx.NodeProto, stored: dict[str, onnx.TensorProto], taken: set[str]) -> list[str]:
    """Store a weight's codes, scales and zero points as the operator takes them; return their names."""
    signed = graph.constants[weight.input[0]].data_type == TensorProto.INT4
    codes, scale = _nibbles(graph.constants[weight.input[0]]), graph.value(weight.input[1])
    assert scale is not None  # noqa: S101 - placement writes constants
    zero = None if signed else _nibbles(graph.constants[weight.input[2]])
    if signed:
        codes ^= _MIDDLE  # two's complement of 4 bits and 8 more: its highest bit turned
    values = {
        "codes": pack_weight(codes, _setting(weight, "block_size"), _MIDDLE if zero is None else zero),
        "scale": np.ascontiguousarray(scale.T).ravel(),
        **({} if zero is None else {"zero": pack_zero(zero)}),
    }
    names = []
    stem = weight.output[0].removesuffix("/dequantized")
    for word, value in values.items():
        name = free_name(f"{stem}/nbits/{word}", taken)
        stored[name] = numpy_helper.from_array(value, name)
        names.append(name)
    return names


def pack_weight(codes: Array, block: int, fill: Array | int) -> Array:
    """Return weights as MatMulNBits takes them, uint8 (outputs, blocks, block / 2).

    Args:
        codes: uint8 (inputs, outputs), 0 to 15.
        block: Inputs of a block.
        fill: What stands where the last block is short: its zero point, or (blocks, outputs) of them.
    """
    inputs, outputs = codes.shape
    short = -inputs % block
    if short:
        last = fill[-1] if isinstance(fill, np.ndarray) else np.full(outputs, fill, np.uint8)
        codes = np.concatenate([codes, np.repeat(last[None], short, axis=0)])
    rows = np.ascontiguousarray(codes.T)
    packed = rows[:, 1::2] << 4
    packed |= rows[:, 0::2]
    return packed.reshape(outputs, -1, block // 2)


def pack_zero(zero: Array) -> Array:
    """Return zero points as MatMulNBits takes them, uint8 (outputs · ⌈blocks / 2⌉).

    Args:
        zero: uint8 (blocks, outputs), 0 to 15.
    """
    rows = np.ascontiguousarray(zero.T)
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    return np.ascontiguousarray(rows[:, 0::2] | rows[:, 1::2] << 4).ravel()


def _nibbles(tensor: onnx.TensorProto) -> Array:
    """Return the 4-bit patterns of a stored tensor, uint8 in its shape."""
    dims = tuple(tensor.dims)
    values = numpy_helper.to_array(tensor) if not tensor.raw_data else None
    if values is not None:
        return np.asarray(values.astype(np.int8).view(np.uint8) & 15)
    raw = np.frombuffer(tensor.raw_data, np.uint8)
    flat = np.empty(2 * raw.size, np.uint8)
    flat[0::2], flat[1::2] = raw & 15, raw >> 4
    return flat[: int(np.prod(dims))].reshape(dims)


def _node(graph: Graph, node: onnx.NodeProto, weight: onnx.NodeProto, names: list[str], level: int) -> onnx.NodeProto:
    inputs, outputs = graph.constants[weight.input[0]].dims
    made = helper.make_node(
        "MatMulNBits", [node.input[0], *names], [node.output[0]], node.name, domain=DOMAIN, K=inputs, N=outputs,
        bits=4, block_size=_setting(weight, "block_size"), accuracy_level=level,
    )  # fmt: skip
    made.metadata_props.extend(node.metadata_props)
    return made
