"""What a repair is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx

from repo_builder.core.recipe import QuantizeSpec
from repo_builder.core.tensors import Array
from repo_builder.quantize.placement import Profile
from repo_builder.quantize.ranges import Observed, Ranges
from repo_builder.quantize.rules import LayerPlan


@dataclass(frozen=True, kw_only=True)
class State:
    """A network on its way to int8.

    Attributes:
        model: The fp32 graph, as ``prepare`` leaves it; repairs copy it before they change it.
        ranges: What its tensors and weights hold, and what repairs made of its layers.
        seen: What the ranges were made of.
    """

    model: onnx.ModelProto
    ranges: Ranges
    seen: Observed


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all repairs of a network share.

    Attributes:
        plans: What each layer is to become.
        spec: The recipe's table.
        samples: Calibration samples that repairs may look at, by input name, batch first.
        profile: The target that they are made for.
        seed: Of every random choice.
        calibrate: A graph → its ranges, as the recipe's calibrators find and ``best`` chooses them for this graph, and
            what they were made of.
    """

    plans: Sequence[LayerPlan]
    spec: QuantizeSpec
    samples: Mapping[str, Array]
    profile: Profile
    seed: int
    calibrate: Callable[[onnx.ModelProto], tuple[Ranges, Observed]]


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What a repair made.

    Attributes:
        state: The network after it; None where it found nothing to do.
        did: What it did, or why it did nothing, without a full stop.
    """

    state: State | None = None
    did: str


class Repair(Protocol):
    """One repair: the network before → the network after."""

    def __call__(self, state: State, work: Work) -> Repaired:
        """Return a changed copy; equal arguments give equal bytes.

        Raises:
            QuantizeError: The network does not run on the samples.
        """
