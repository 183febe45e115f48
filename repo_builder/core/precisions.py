"""What a precision is: one row each, read by rules, placement, the graph's reader and the tables.

Adding one is a row here, a name in ``core.recipe.Precision``, and for each target what its profile makes of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PrecisionKind:
    """What a layer of a precision is in an ONNX graph.

    Attributes:
        bits: Width of a value. More than was asked costs time, fewer cost accuracy.
        codes: What of a layer is stored or read as codes of few bits, behind DequantizeLinear: its weight and its
            input, its weight alone, or nothing, where the graph's tensors themselves have the type.
        element: The codes' element type, or the tensors', as ``onnx.TensorProto`` calls it.
        opset: The first version of the default operator set whose Q/DQ takes it; 13 where there are none.
        largest: The absolute value of the largest code, which a symmetric scale maps the range's end to.
    """

    bits: int
    codes: Literal["weight and input", "weight", "none"]
    element: str
    opset: int = 13
    largest: float = 0.0


PRECISIONS: dict[str, PrecisionKind] = {
    # in blocks along the inputs, with a scale each: blocked Q/DQ came with opset 21. Unsigned where it is asymmetric
    "int4": PrecisionKind(bits=4, codes="weight", element="INT4", opset=21, largest=7),
    "int8": PrecisionKind(bits=8, codes="weight and input", element="INT8", largest=127),
    # E4M3 without infinities, of "FP8 Formats for Deep Learning" (arXiv 2209.05433): 448 = 1.75 · 2**8
    "fp8": PrecisionKind(bits=8, codes="weight and input", element="FLOAT8E4M3FN", opset=19, largest=448),
    "fp16": PrecisionKind(bits=16, codes="none", element="FLOAT16"),
    "fp32": PrecisionKind(bits=32, codes="none", element="FLOAT"),
}


LOWERED = tuple(name for name, kind in PRECISIONS.items() if kind.codes != "none")


def lowered(precisions: Iterable[str]) -> str:
    """Return those that are stored as codes in one phrase, as in ``int4 and int8``; empty for none."""
    found = set(precisions)
    return " and ".join(name for name in LOWERED if name in found)


def opset_of(precisions: Iterable[str]) -> int:
    """Return the oldest operator set that holds layers of these precisions."""
    return max((PRECISIONS[name].opset for name in precisions), default=13)
