"""E4M3 without infinities: values of 8 bits with 4 of exponent and 3 of mantissa, as QuantizeLinear rounds to them.

"FP8 Formats for Deep Learning" (arXiv 2209.05433): bias 7, normal values from 2**-6 to 448, below them steps of 2**-9.
ONNX rounds to the nearest, ties to even, and saturates. numpy only.
"""

from __future__ import annotations

import numpy as np

from repo_builder.core.precisions import PRECISIONS
from repo_builder.core.tensors import Array

LARGEST = PRECISIONS["fp8"].largest
_LOWEST_EXPONENT = -6  # of a normal value
_MANTISSA_BITS = 3
_BIAS = 7


def rounded(values: Array) -> Array:
    """Return the nearest E4M3 values, of the floating type that is given; what lies beyond ±448 is ±448."""
    sizes = np.minimum(np.abs(values), LARGEST)
    exponents = np.maximum(np.frexp(sizes)[1] - 1, _LOWEST_EXPONENT)
    steps = np.ldexp(np.ones_like(sizes), exponents - _MANTISSA_BITS)
    found: Array = np.copysign(np.rint(sizes / steps) * steps, values)
    return found


def codes(values: Array, scale: Array) -> Array:
    """Return the patterns of values / scale, uint8, as QuantizeLinear computes them: the quotient is a float32.

    Args:
        values: float32.
        scale: float32, one or shaped as ``values`` takes it.
    """
    found = rounded(np.asarray(values, np.float32) / np.asarray(scale, np.float32))
    sizes = np.abs(found)
    exponents = np.maximum(np.frexp(sizes)[1] - 1, _LOWEST_EXPONENT)
    mantissas = (sizes * np.ldexp(1.0, _MANTISSA_BITS - exponents)).astype(np.int64)  # 8 to 15, below 8 if subnormal
    normal = mantissas >= 1 << _MANTISSA_BITS
    patterns = np.where(normal, (exponents + _BIAS - 1 << _MANTISSA_BITS) + mantissas, mantissas)
    return np.asarray(patterns | (np.signbit(found) << 7), np.uint8)
