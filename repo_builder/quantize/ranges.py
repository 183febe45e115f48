"""What calibration found: the range of every float tensor and of every layer's weight. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from repo_builder.core.tensors import Array


@dataclass(frozen=True, kw_only=True)
class TensorRange:
    """What one float tensor of the fp32 graph held over the calibration samples.

    Attributes:
        low: The least value seen.
        high: The largest value seen.
        amax: The absolute value that the calibrator keeps.
        calibrator: The calibrator that found ``amax``, as in ``percentile 99.99``.
    """

    low: float
    high: float
    amax: float
    calibrator: str


@dataclass(frozen=True, kw_only=True)
class WeightRange:
    """The absolute value that is kept of a layer's weight.

    Attributes:
        amax: float32 (channels,), or () for one range.
    """

    amax: Array


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """The ranges of a graph.

    Attributes:
        tensors: Name of a float activation in the fp32 graph → its range.
        weights: Layer name → the range of its weight.
    """

    tensors: Mapping[str, TensorRange] = field(default_factory=dict)
    weights: Mapping[str, WeightRange] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What calibration saw, before it is known which calibrator's range a tensor is to have.

    Attributes:
        low: Tensor → the least value seen.
        high: Tensor → the largest value seen.
        amax: (tensor, calibrator) → the absolute value that it keeps.
    """

    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)
    amax: dict[tuple[str, str], float] = field(default_factory=dict)
