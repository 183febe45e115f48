"""From ranges to scales and zero points.

Unsigned codes: zero point 0 and amax / 255 for a tensor that is never negative, else 255 steps over
[max(low, −amax), min(high, amax)] with 0 inside and exactly a code. Signed codes: amax / 127 and zero point 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from repo_builder.core.errors import QuantizeError
from repo_builder.core.tensors import Array
from repo_builder.quantize.placement.choose import Choice
from repo_builder.quantize.ranges import TensorRange

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


def tensor_codes(
    choice: Choice, ranges: Mapping[str, TensorRange], dtype: Literal["uint8", "int8"]
) -> dict[str, Codes]:
    """Return the codes of all tensors that carry Q/DQ.

    Tensors that have to share a scale share the widest range among them. A tensor of which a float reader sees the
    rounded values (its demand is then ``max``) covers all that calibration saw, whatever range is at hand.

    Raises:
        QuantizeError: A range is not finite, or too small for float32.
    """
    found = {}
    for group in _groups(choice):
        bounds = []
        for tensor in group:
            span = ranges[tensor]
            everything = any(spec.calibrator == "max" for spec in choice.demands[tensor][0])
            bounds.append((span.low, span.high, max(abs(span.low), abs(span.high)) if everything else span.amax))
            _check(choice, tensor, bounds[-1])
        low, high, amax = (
            min(item[0] for item in bounds),
            max(item[1] for item in bounds),
            max(item[2] for item in bounds),
        )
        found.update(dict.fromkeys(group, codes_for(low, high, amax, dtype)))
    return {tensor: found[tensor] for tensor in choice.tensors}


def _check(choice: Choice, tensor: str, bounds: tuple[float, float, float]) -> None:
    """Refuse a range that 8 bits cannot cover."""
    index = choice.index
    layers = [choice.layers.plans[place].name for place in index.readers[tensor] if place in choice.layers.int8]
    maker = index.makers.get(tensor)
    where = next(iter(layers), None) or (index.nodes[maker].name if maker is not None else tensor) or tensor
    what = "its input" if layers else f"the tensor '{tensor}'"
    hint = "leave the layer in fp32"
    if not all(math.isfinite(item) for item in bounds):
        raise QuantizeError(f"{what} is not finite on calibration data", where=where, hint=hint)
    if layers and bounds[2] == 0:
        hint = "leave the layer in fp32, or calibrate on more samples"
        text = "its input is zero in every calibration sample, which leaves no range for int8"
        raise QuantizeError(text, where=where, hint=hint)
    if 0 < bounds[2] < LEAST_SCALE * 255:
        raise QuantizeError(f"{what} never exceeds {bounds[2]:.1e}, too little for a scale", where=where, hint=hint)


def _groups(choice: Choice) -> list[list[str]]:
    """Return the chosen tensors in groups that share a scale, in graph order."""
    leader = {tensor: tensor for tensor in choice.tensors}

    def find(tensor: str) -> str:
        while leader[tensor] != tensor:
            tensor = leader[tensor]
        return tensor

    for place, form in choice.glue.items():
        tensors = [*choice.int8_reads(place), *choice.index.nodes[place].output]
        members = [tensor for tensor in tensors if tensor in leader]
        if form.one_scale:
            for tensor in members[1:]:
                leader[find(tensor)] = find(members[0])
    groups: dict[str, list[str]] = {}
    for tensor in choice.tensors:
        groups.setdefault(find(tensor), []).append(tensor)
    return list(groups.values())
