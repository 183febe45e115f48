"""What calibration found: the range of every float tensor and of every layer's weight. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from repo_builder.core.records import RepairRecord
from repo_builder.core.tensors import Array

BEST = "best"  # the calibrator of a rule that leaves the choice to what the outputs keep


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
    """The absolute value that is kept of a layer's weight, and what repairs make of the layer where it is int8.

    Attributes:
        amax: float32 (channels,), or () for one range.
        calibrator: The calibrator that found it, as in ``percentile 99.99``; empty where there was no choice.
        codes: int8, as the weight is stored: its codes at steps of amax / 127; None for the nearest ones.
        shift: float64 (output channels,): what is added to the layer's bias; None for nothing.
    """

    amax: Array
    calibrator: str = ""
    codes: Array | None = None
    shift: Array | None = None


@dataclass(frozen=True, kw_only=True)
class BlockRange:
    """How the weight (inputs, outputs) of an int4 layer becomes codes, so many inputs at a time.

    Attributes:
        block: Weights of an output that share a scale; the last block of an output may hold fewer.
        inputs: Weights of an output.
        scale: float32 (blocks, outputs): one step.
        zero: uint8 (blocks, outputs), 0 to 15: the code of 0 of unsigned codes; None for signed ones, whose 0 is 0.
        codes: (inputs, outputs), uint8 or int8 as ``blocks.codes`` gives them, chosen otherwise; None for the nearest.
    """

    block: int
    inputs: int
    scale: Array
    zero: Array | None = None
    codes: Array | None = None

    @property
    def weights(self) -> int:
        """How many weights there are."""
        return self.inputs * int(self.scale.shape[1])

    @property
    def stored_bytes(self) -> int:
        """What they take as codes of 4 bits, with scales and zero points."""
        return -(-self.weights // 2) + self.scale.nbytes + (0 if self.zero is None else -(-self.zero.size // 2))


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """The ranges of a graph.

    Attributes:
        tensors: Name of a float activation in the fp32 graph → its range.
        weights: Layer name → the range of its weight.
        blocks: Name of an int4 layer → how its weight becomes codes.
    """

    tensors: Mapping[str, TensorRange] = field(default_factory=dict)
    weights: Mapping[str, WeightRange] = field(default_factory=dict)
    blocks: Mapping[str, BlockRange] = field(default_factory=dict)

    @property
    def repaired(self) -> bool:
        """Whether repairs gave a weight codes or a shift, which they found with all int8 layers in int8."""
        return any(item.codes is not None or item.shift is not None for item in self.weights.values())

    def unrepaired(self) -> Ranges:
        """Return these without the codes and shifts that repairs found."""
        return replace(self, weights={n: replace(item, codes=None, shift=None) for n, item in self.weights.items()})


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What calibration saw, before it is known which calibrator's range a tensor is to have.

    Attributes:
        low: Tensor → the least value seen.
        high: Tensor → the largest value seen.
        amax: (tensor, calibrator) → the absolute value that it keeps.
        chosen: What a calibrator was chosen for, ``tensor NAME`` or ``weight LAYER`` → the calibrator.
        chosen_for: Hash of what the choice depends on beside the graph and the samples.
        record: What is said of the choice; None where nothing was chosen.
    """

    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)
    amax: dict[tuple[str, str], float] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    chosen_for: str = ""
    record: RepairRecord | None = None
