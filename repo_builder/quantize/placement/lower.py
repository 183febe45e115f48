"""Glue that has no int8 kernel of its own, written with those that there are.

A product or quotient with one constant above 0 is no operator at all: the same codes, a step of another size. Another
quotient by a constant is a product with its reciprocal.

A hard sigmoid, clip(a·x + b, 0, 1), is a · clip(x + c, 0, 1/a) with c = b/a, and x + c is x's codes with a zero point
that is c steps lower. So it is a Clip of codes, or nothing where the codes end where the Clip does, and a
DequantizeLinear with a step a times as large: exact for what the codes of x stand for, if -c is one of them
(``scales.py`` sees to that where it costs little). Otherwise x + c is a sum whose codes, unsigned and from 0 on, end
where the clip does. A hard swish is x times its hard sigmoid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx

from repo_builder.core.graphs import DQ, attribute
from repo_builder.core.tensors import Array
from repo_builder.quantize.placement.codes import Codes, codes_for
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.placement.table import Lowering
from repo_builder.quantize.placement.writer import Writer

_UNIT = Codes(scale=np.float32(1 / 255), zero_point=0, dtype="uint8")
_EXACT = 1e-5  # of a hard sigmoid's start: more than float32 rounds a step by, less than anyone sees


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A hard sigmoid.

    Attributes:
        slope: What it rises by between its ends.
        start: It is 0 up to minus this.
        end: It is 1 from here on.
    """

    slope: float
    start: float
    end: float


def gate(node: onnx.NodeProto) -> Gate | None:
    """Return the hard sigmoid that a HardSigmoid is or that a HardSwish multiplies by, where it starts below 0.

    None for other nodes, and for a hard sigmoid that is 0 or 1 at 0: its start or end has no use as a code.
    """
    if node.op_type == "HardSwish":
        return Gate(slope=1 / 6, start=3, end=3)
    if node.op_type != "HardSigmoid":
        return None
    slope, offset = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    return Gate(slope=slope, start=offset / slope, end=(1 - offset) / slope) if slope > 0 and 0 < offset < 1 else None


def gated(codes: Codes, found: Gate | None) -> Codes | None:
    """Return for what values a tensor's own codes stand as a hard sigmoid's, ends apart; None where they do not."""
    if found is None:
        return None
    steps = round(found.start / float(codes.scale))
    exact = abs(steps * float(codes.scale) - found.start) <= _EXACT * found.start
    if not exact or steps > codes.zero_point or codes.dtype != "uint8":
        return None
    return replace(codes.times(found.slope), zero_point=codes.zero_point - steps)


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


def reinterpret(out: Writer, node: onnx.NodeProto, tensor: str, codes: Codes, output: str) -> str | None:
    """Append a hard sigmoid of codes as these codes, and return them; None where they do not do.

    Args:
        out: The graph that is written.
        node: The hard sigmoid, or the hard swish that multiplies by it.
        tensor: What it reads, which has codes.
        codes: What they stand for.
        output: The name that the hard sigmoid's values get.
    """
    found, values = gate(node), gated(codes, gate(node))
    if found is None or values is None:
        return None
    stem, read = node.name or node.output[0], out.codes[tensor]
    last = min(255, codes.zero_point + round(found.end / float(codes.scale)))
    if values.zero_point or last < 255:
        limits = [
            out.constant(f"{stem}/{word}", np.asarray(code, np.uint8))
            for word, code in (("first", values.zero_point), ("last", last))
        ]
        read = out.node("Clip", [read, *limits], out.name(f"{stem}/clipped"), f"{stem}/Clip")
    settings = [out.constant(f"{stem}/scale", np.asarray(values.scale)), out.constant(f"{stem}/zero", values.zero)]
    out.node(DQ, [read, *settings], output, f"{stem}/{DQ}")
    return read


def lower(out: Writer, node: onnx.NodeProto, how: Lowering, tensor: str, codes: Codes, output: Codes) -> Codes:
    """Append what computes a glue node's output, before its Q, and return the codes that this Q has to give.

    Args:
        out: The graph that is written.
        node: A copy of the node, whose inputs are those that it is to read.
        how: Its row's ``lowered``.
        tensor: What the node reads, which has codes.
        codes: What they stand for.
        output: The codes that readers take its output for.
    """
    stem = node.name or node.output[0]
    if how == "hard swish":
        read = out.name(f"{stem}/gate")
        if reinterpret(out, node, tensor, codes, read) is not None:
            out.nodes.append(onnx.helper.make_node("Mul", [node.input[0], read], node.output[:], node.name))
            return output
        total = _hard_sigmoid(out, node.input[0], 1 / 6, 0.5, out.name(f"{stem}/sum"), stem)
        out.pair(total, read, _UNIT, f"{stem}/gate", quantized=_UNIT.times(6))
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
