"""Optimization profiles: the shapes that a TensorRT plan takes, and how its manifest says them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from repo_builder.tensors import ShapeProfile

Profile = dict[str, ShapeProfile]  # input name → its full shapes
BOUNDS = ("min", "opt", "max")


def max_batch(profiles: Iterable[Profile]) -> int:
    """Return the largest batch that some profile takes in every input."""
    return max((min(shape.max[0] for shape in profile.values()) for profile in profiles), default=0)


def min_batch(profiles: Iterable[Profile]) -> int:
    """Return the smallest batch that some profile takes in every input."""
    return min((max(shape.min[0] for shape in profile.values()) for profile in profiles), default=0)


def to_json(profiles: Iterable[Profile]) -> list[dict[str, Any]]:
    """Return profiles as plain JSON values: [{input: {min, opt, max}}]."""
    return [
        {name: {key: list(getattr(shape, key)) for key in BOUNDS} for name, shape in profile.items()}
        for profile in profiles
    ]


def from_json(value: Iterable[Mapping[str, Mapping[str, Sequence[int]]]]) -> tuple[Profile, ...]:
    """Return what ``to_json`` was given."""
    return tuple(
        {name: ShapeProfile(**{key: tuple(shape[key]) for key in BOUNDS}) for name, shape in profile.items()}
        for profile in value
    )
