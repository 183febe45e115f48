"""Optimization profiles: from the recipe's batch sizes and shapes to full shapes per input, and the one for a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from repo_builder.core.errors import CompileError, RecipeError, did_you_mean
from repo_builder.core.profiles import BOUNDS, Profile, first_hole, in_words, max_batch
from repo_builder.core.recipe import ProfileSpec, Recipe
from repo_builder.core.tensors import ShapeProfile, TensorSpec

_STEP = 8  # from one tuned batch size to the next: each costs a build and an execution context


def from_recipe(recipe: Recipe) -> tuple[Profile, ...]:
    """Return the profiles that the recipe asks for: input name → full shapes.

    Without ``[[compile.tensorrt.profiles]]`` they cover 1 to ``repository.max_batch_size``, each tuned for its own
    largest: the preferred batch sizes where there are any, else 1, 8, 64, ... and the largest.

    Raises:
        RecipeError: A profile has no shape for a dynamic dimension, or does not fit the inputs.
        CompileError: A batch that Triton may form fits no profile.
    """
    largest = max(recipe.repository.max_batch_size, 1)
    specs = recipe.compile.tensorrt.profiles or _usual(largest, recipe.repository.preferred_batch_sizes)
    profiles = tuple(
        {item.name: _shapes(item, spec, f"compile.tensorrt.profiles[{place}]") for item in recipe.model.inputs}
        for place, spec in enumerate(specs)
    )
    for place, spec in enumerate(specs):
        unknown = next((name for name in spec.shapes if name not in profiles[place]), None)
        if unknown is not None:
            where = f"compile.tensorrt.profiles[{place}].shapes"
            raise RecipeError(
                f"there is no input '{unknown}'", where=where, hint=did_you_mean(unknown, profiles[place])
            )
    if recipe.repository.max_batch_size:
        _check_coverage(recipe, profiles)
    return profiles


def _usual(largest: int, preferred: Sequence[int]) -> tuple[ProfileSpec, ...]:
    """Return profiles from 1 to the largest batch, each tuned for its own largest.

    A kernel that is best at batch 64 is slow at 1: ResNet-50 in int8 on an H200 with TensorRT 8.6 took 482 us for one
    image with a single profile tuned for 64, and 334 us with one of its own.
    """
    steps = (_STEP**power for power in range(largest.bit_length()))
    tuned = sorted({1, largest, *(preferred or (size for size in steps if size < largest))})
    return tuple(
        ProfileSpec(min_batch=low + 1, opt_batch=high, max_batch=high)
        for low, high in zip((0, *tuned), tuned, strict=False)
    )


def _check_coverage(recipe: Recipe, profiles: Sequence[Profile]) -> None:
    """Refuse profiles that leave out what Triton may send."""
    largest, covered = recipe.repository.max_batch_size, max_batch(profiles)
    if covered < largest:
        raise CompileError(
            f"Triton may form batches of {largest}, and the largest profile ends at {covered}",
            where="repository.max_batch_size",
            hint=f"lower it to {covered}, or raise max_batch in compile.tensorrt.profiles",
        )
    hole = first_hole(profiles, {item.name: item.shape for item in recipe.model.inputs}, largest=largest)
    if hole:
        raise CompileError(
            f"Triton may send {in_words(hole)}, and no profile takes that",
            where="compile.tensorrt.profiles",
            hint=f"let min_batch to max_batch of the profiles cover 1 to {largest} without a gap, for all shapes, "
            "or set repository.max_batch_size = 0",
        )


def _shapes(tensor: TensorSpec, spec: ProfileSpec, where: str) -> ShapeProfile:
    """Return one input's full shapes in one profile."""
    bounds = spec.shapes.get(tensor.name, {})
    where_shape = f"{where}.shapes.{tensor.name}"
    if -1 in tensor.shape and set(bounds) != set(BOUNDS):
        raise RecipeError(
            f"the input {tensor} has dynamic dimensions and no min, opt and max shape",
            where=where,
            hint=f"add shapes.{tensor.name} = {{ min = [...], opt = [...], max = [...] }}, without the batch",
        )
    full: dict[str, tuple[int, ...]] = {}
    for key in BOUNDS:
        shape = tuple(bounds.get(key, tensor.shape))
        if not tensor.fits(shape):
            raise RecipeError(f"{list(shape)} is no shape of the input {tensor}", where=f"{where_shape}.{key}")
        full[key] = (getattr(spec, f"{key}_batch"), *shape)
    try:
        return ShapeProfile(**full)
    except ValueError as error:
        raise RecipeError(str(error), where=where) from None


def choose(profiles: Sequence[Profile], shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return the profile that covers the inputs' shapes, the tightest one of several; None where none does."""
    fitting = [place for place, profile in enumerate(profiles) if _covers(profile, shapes)]
    return min(fitting, key=lambda place: _slack(profiles[place], shapes), default=None)


def _covers(profile: Profile, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return profile.keys() == shapes.keys() and all(profile[name].covers(shape) for name, shape in shapes.items())


def _slack(profile: Profile, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How far the shapes are from what the profile is tuned for, summed over all dimensions."""
    pairs = ((profile[name].opt, shape) for name, shape in shapes.items())
    return sum(abs(tuned - size) for opt, shape in pairs for tuned, size in zip(opt, shape, strict=True))
