"""Optimization profiles: the shapes that a TensorRT plan takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from repo_builder.core.tensors import ShapeProfile, TensorSpec

Profile = dict[str, ShapeProfile]  # input name → its full shapes
BOUNDS = ("min", "opt", "max")
_BATCH = ("", 0)
_Box = dict[tuple[str, int], tuple[int, int]]  # (input, dimension) → smallest and largest size


@dataclass(frozen=True, kw_only=True)
class PlanSignature:
    """What a plan takes and gives.

    Attributes:
        inputs: Its inputs, batch left out.
        outputs: Its outputs, batch left out.
        profiles: The shapes that it takes.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]


def max_batch(profiles: Iterable[Profile]) -> int:
    """Return the largest batch that some profile takes in every input."""
    return max((min(shape.max[0] for shape in profile.values()) for profile in profiles), default=0)


def min_batch(profiles: Iterable[Profile]) -> int:
    """Return the smallest batch that some profile takes in every input."""
    return min((max(shape.min[0] for shape in profile.values()) for profile in profiles), default=0)


def first_hole(
    profiles: Sequence[Profile],
    dims: Mapping[str, Sequence[int]],
    *,
    largest: int,
    of: Sequence[Profile] = (),
) -> dict[str, tuple[int, ...]] | None:
    """Return shapes that Triton may send and none of the profiles takes; None where they take all.

    Triton may send every batch from 1 to ``largest``, the same in all inputs, of the dims that are fixed. What varies
    may have any size that some profile takes together with the others: what is refused alone too is no hole.

    Args:
        profiles: The profiles that are used; at least one.
        dims: Input → dims, -1 where one varies; without the batch where there is one. An input left out may have any.
        largest: The largest batch; 0 where there is no batching and shapes are whole.
        of: All profiles whose sizes may come, where those are more than ``profiles``.
    """
    behind = 1 if largest else 0
    fixed = {
        (name, place): (size, size)
        for name, sizes in dims.items()
        for place, size in enumerate(sizes, behind)
        if size >= 0
    }
    asked = [_box(profile, batches=bool(largest)) for profile in of or profiles]
    possible = [box for box in asked if all(_meet(box[axis], size) for axis, size in fixed.items())]
    for box in possible or asked:
        left = [{**box, **fixed, **({_BATCH: (1, largest)} if largest else {})}]
        for profile in profiles:
            taken = _box(profile, batches=bool(largest))
            left = [part for item in left for part in _outside(item, taken)]
        if left:
            smallest = {axis: low for axis, (low, _) in left[0].items()}
            return {
                name: tuple(
                    smallest[(name, place) if place or not largest else _BATCH] for place in range(len(shape.min))
                )
                for name, shape in profiles[0].items()
            }
    return None


def in_words(shapes: Mapping[str, Sequence[int]]) -> str:
    """Return inputs' shapes as in ``x [1, 4], y [1, 8]``."""
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())


def _box(profile: Profile, *, batches: bool) -> _Box:
    """Return the sizes that a profile takes in each dimension; the batch is one dimension for all inputs."""
    box: _Box = {}
    for name, shape in profile.items():
        for place, (low, high) in enumerate(zip(shape.min, shape.max, strict=True)):
            axis = (name, place) if place or not batches else _BATCH
            least, most = box.get(axis, (low, high))
            box[axis] = max(low, least), min(high, most)
    return box


def _meet(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(one[0], other[0]) <= min(one[1], other[1])


def _outside(box: _Box, taken: _Box) -> Iterator[_Box]:
    """Cut what is taken out of a box, and yield the parts that are left."""
    if not all(_meet(sizes, taken[axis]) for axis, sizes in box.items()):
        yield box
        return
    for axis, (low, high) in box.items():
        least, most = taken[axis]
        if low < least:
            yield {**box, axis: (low, least - 1)}
        if high > most:
            yield {**box, axis: (most + 1, high)}
        box = {**box, axis: (max(low, least), min(high, most))}


def check_profiles(profiles: Iterable[Profile]) -> None:
    """Refuse what no plan has.

    Raises:
        ValueError: Shapes have no batch, or the profiles are not of the same inputs.
    """
    ranks = [{name: len(shape.min) for name, shape in profile.items()} for profile in profiles]
    if any(not found or 0 in found.values() or found != ranks[0] for found in ranks):
        raise ValueError(f"inputs, or dimensions of them, are missing in a profile: {ranks}")
