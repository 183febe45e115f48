"""Layers that were to be int8 or int4 and are left in floating point: plans and ranges without them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import onnx

from repo_builder.core.recipe import Precision
from repo_builder.quantize.placement import LayerOutcome, Placed, Profile, place, wanted
from repo_builder.quantize.ranges import Ranges, TensorRange
from repo_builder.quantize.rules import LayerPlan

MAY_NOT_PAY = frozenset({"int4", "int8"})  # on ONNX Runtime they are for speed, and may be slower than fp32
_WILDCARDS = frozenset("*?[")


def free(plans: Sequence[LayerPlan], placed: Placed) -> tuple[str, ...]:
    """Return the int8 and int4 layers that may be left in fp32: those that no rule calls by their full name."""
    lower = {item.name for item in placed.layers if item.placed in MAY_NOT_PAY}
    return tuple(item.name for item in plans if item.name in lower and not called(item))


def called(plan: LayerPlan) -> bool:
    """Whether a rule calls a layer by its full name."""
    name = plan.rule.name if plan.rule else None
    return name is not None and not _WILDCARDS & set(name)


def place_without(
    model: onnx.ModelProto,
    plans: Sequence[LayerPlan],
    ranges: Ranges,
    profile: Profile,
    left: Mapping[str, str],
    instead: Precision = "fp32",
) -> Placed:
    """Place Q/DQ, some layers left in floating point.

    Args:
        model: As for ``place``.
        plans: As the rules say.
        ranges: Found for these plans.
        profile: The target.
        left: Layer → why it is left in floating point.
        instead: What these layers are instead, ``fp32`` or ``fp16``.
    """
    if not left:
        return place(model, plans, ranges, profile)
    fewer = without(plans, left, instead)
    asked = {item.name: item.precision for item in plans}
    placed = place(model, fewer, _widened(model, fewer, ranges, profile), profile)
    rows = tuple(
        LayerOutcome(name=row.name, type=row.type, asked=asked[row.name], placed=instead, reason=left[row.name])
        if row.name in left
        else row
        for row in placed.layers
    )
    return dataclasses.replace(placed, layers=rows)


def without(plans: Sequence[LayerPlan], left: Collection[str], instead: Precision = "fp32") -> tuple[LayerPlan, ...]:
    """Return the plans with some layers in fp32, or in fp16."""
    return tuple(dataclasses.replace(item, precision=instead) if item.name in left else item for item in plans)


def _widened(model: onnx.ModelProto, plans: Sequence[LayerPlan], ranges: Ranges, profile: Profile) -> Ranges:
    """Return ranges that clip nothing for a layer that is left in fp32 and reads rounded values."""
    tensors = dict(ranges.tensors)
    for name, want in wanted(model, plans, [profile]).items():
        found = tensors.get(name)
        if found is not None and [item.calibrator for item in want.calibrators] == ["max"]:
            amax = max(abs(found.low), abs(found.high))
            if found.amax < amax:
                tensors[name] = TensorRange(low=found.low, high=found.high, amax=amax, calibrator="max")
    return dataclasses.replace(ranges, tensors=tensors)
