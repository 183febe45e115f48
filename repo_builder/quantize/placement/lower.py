"""Glue that has no int8 kernel of its own, written with those that there are.

A product or quotient with one constant above 0 is no operator at all: the same codes, a step of another size. Another
quotient by a constant is a product with its reciprocal. A hard sigmoid, clip(a·x + b, 0, 1), is a · clip(x + b/a, 0,
1/a): a sum whose codes, unsigned and from 0 on, end where the clip does; that DequantizeLinear takes a step a times as
large as QuantizeLinear's is the factor a. A hard swish is x times its hard sigmoid.
"""

from __future__ import annotations

import numpy as np
import onnx

from repo_builder.core.graphs import attribute
from repo_builder.core.tensors import Array
from repo_builder.quantize.placement.codes import Codes, codes_for
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.placement.table import Lowering
from repo_builder.quantize.placement.writer import Writer

_UNIT = Codes(scale=np.float32(1 / 255), zero_point=0, dtype="uint8")


def factor(index: Index, node: onnx.NodeProto) -> float | None:
    """Return the one constant above 0 that a Mul or Div multiplies its activation by, None where there is none."""
    place = next((at for at, name in enumerate(node.input) if index.constant(name)), None)
    if place is None:
        return None
    value = index.value(node.input[place])
    if value is None or value.size != 1 or value.dtype != np.float32 or not 0 < float(value.ravel()[0]) < np.inf:
        return None
    shape = index.shapes.get(node.input[1 - place])  # a constant of more axes would add some to the product
    if value.ndim and (shape is None or value.ndim > len(shape)):
        return None
    if node.op_type == "Div":
        return 1 / float(value.ravel()[0]) if place == 1 else None
    return float(value.ravel()[0])


def lowers(index: Index, node: onnx.NodeProto, how: Lowering) -> bool:
    """Whether a node can be written as its row of the table says."""
    if how == "reciprocal":
        value = index.value(node.input[1])
        return value is not None and value.dtype == np.float32 and bool(np.all(value != 0))
    return how != "hard sigmoid" or attribute(node, "alpha", 0.2) > 0


def lower(out: Writer, node: onnx.NodeProto, how: Lowering, output: Codes) -> Codes:
    """Append what computes a glue node's output, before its Q, and return the codes that this Q has to give.

    Args:
        out: The graph that is written.
        node: A copy of the node, whose inputs are those that it is to read.
        how: Its row's ``lowered``.
        output: The codes that readers take its output for.
    """
    stem = node.name or node.output[0]
    if how == "hard swish":
        gate = _hard_sigmoid(out, node.input[0], 1 / 6, 0.5, out.name(f"{stem}/sum"), stem)
        read = out.name(f"{stem}/gate")
        out.pair(gate, read, _UNIT, f"{stem}/gate", quantized=_UNIT.times(6))
        out.nodes.append(onnx.helper.make_node("Mul", [node.input[0], read], node.output[:], node.name))
        return output
    alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    _hard_sigmoid(out, node.input[0], alpha, beta, node.output[0], stem, name=node.name)
    return output.times(1 / alpha)


def reciprocal(value: Array) -> Array:
    """Return a divisor's reciprocals, float32."""
    return np.asarray(1 / value.astype(np.float64), np.float32)


def _hard_sigmoid(out: Writer, x: str, alpha: float, beta: float, output: str, stem: str, *, name: str = "") -> str:
    """Append x + b/a."""
    shift = np.float32(beta / alpha)
    codes = codes_for(min(float(shift), 0), max(float(shift), 0), abs(float(shift)), "uint8")
    constant = out.dequantized(f"{stem}/shift", codes.of(np.asarray(shift)), np.asarray(codes.scale), None, codes.zero)
    out.nodes.append(onnx.helper.make_node("Add", [x, constant], [output], name or out.name(f"{stem}/Add")))
    return output
