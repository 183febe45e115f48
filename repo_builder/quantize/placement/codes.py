"""How values become 8-bit codes.

Unsigned codes: zero point 0 and amax / 255 for a tensor that is never negative, else 255 steps over
[max(low, −amax), min(high, amax)] with 0 inside and exactly a code. Signed codes: amax / 127 and zero point 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from repo_builder.core.tensors import Array

# Below, a scale would be no normal float32, with which ONNX Runtime and TensorRT still divide exactly enough.
LEAST_SCALE = 2.0**-120


@dataclass(frozen=True, kw_only=True)
class Codes:
    """How a tensor's values become 8-bit codes.

    Attributes:
        scale: One step, a float32 above 0.
        zero_point: The code of 0.
        dtype: The codes' type.
    """

    scale: np.float32
    zero_point: int
    dtype: Literal["uint8", "int8"]

    @property
    def zero(self) -> Array:
        """The zero point as an array () of the codes' type."""
        return np.asarray(self.zero_point, self.dtype)

    @property
    def low(self) -> float:
        """The least value that a code stands for."""
        return float(self.scale) * (int(np.iinfo(self.dtype).min) - self.zero_point)

    @property
    def high(self) -> float:
        """The largest."""
        return float(self.scale) * (int(np.iinfo(self.dtype).max) - self.zero_point)

    def times(self, factor: float) -> Codes:
        """Return the same codes for values that are so many times as large."""
        return replace(self, scale=np.float32(float(self.scale) * factor))

    def of(self, values: Array) -> Array:
        """Return values' codes, as QuantizeLinear rounds and clips."""
        limits = np.iinfo(self.dtype)
        steps = np.rint(np.asarray(values, np.float64) / float(self.scale)) + self.zero_point
        return np.asarray(np.clip(steps, limits.min, limits.max), self.dtype)


def codes_for(low: float, high: float, amax: float, dtype: Literal["uint8", "int8"]) -> Codes:
    """Return the codes of a range.

    Args:
        low: The least value seen.
        high: The largest value seen.
        amax: The absolute value that is kept.
        dtype: The codes' type.
    """
    if dtype == "int8":
        return Codes(scale=_scale(amax, 127), zero_point=0, dtype=dtype)
    least, most = min(max(low, -amax), 0.0), max(min(high, amax), 0.0)
    if least == 0:
        scale = _scale(min(most, amax) if high > 0 else amax, 255)
        # A Clip is folded into a Q that ends where it does: 255 steps must not go beyond (ONNX Runtime allows 1e-7).
        while float(scale) * 255 > most > 0 and scale > LEAST_SCALE:
            scale = np.nextafter(scale, np.float32(0))
        return Codes(scale=scale, zero_point=0, dtype=dtype)
    scale = _scale(most - least, 255)
    return Codes(scale=scale, zero_point=int(min(255, max(0, round(-least / float(scale))))), dtype=dtype)


def _scale(width: float, steps: int) -> np.float32:
    """Return a step; a tensor that is 0 throughout is exact with any, and gets 1."""
    return np.float32(max(width / steps, LEAST_SCALE)) if width > 0 else np.float32(1)
