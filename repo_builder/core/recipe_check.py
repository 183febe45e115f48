"""What a recipe may not say although every value has the right type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repo_builder.core.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from repo_builder.core.recipe import Recipe


def check(recipe: Recipe) -> None:
    """Refuse values that have the right type and make no sense.

    Raises:
        RecipeError: Names the key path.
    """

    def refuse(holds: bool, where: str, message: str, hint: str | None = None) -> None:
        if not holds:
            raise RecipeError(message, where=where, hint=hint)

    name_ok = bool(recipe.name) and all(c.isalnum() or c in "-_." for c in recipe.name) and recipe.name[0].isalnum()
    refuse(name_ok, "name", f"'{recipe.name}' cannot name a folder", "use letters, digits, '-', '_' and '.'")
    refuse(recipe.seed >= 0, "seed", "must not be negative")
    refuse(bool(recipe.model.inputs), "model.inputs", "there is no input", "add [[model.inputs]]")
    refuse(bool(recipe.model.outputs), "model.outputs", "there is no output", "add [[model.outputs]]")
    for key in ("validation", "test"):
        share = getattr(recipe.data, key)
        refuse(0 < share < 1, f"data.{key}", f"{share} is not a fraction between 0 and 1")
    refuse(recipe.data.validation + recipe.data.test < 1, "data", "validation and test leave nothing to train on")
    refuse(recipe.data.calibration > 0, "data.calibration", "calibration needs at least one sample")
    for place, rule in enumerate(recipe.quantize.layers):
        where = f"quantize.layers[{place}]"
        refuse(
            rule.num_bits == 8,
            f"{where}.num_bits",
            f"{rule.num_bits} bits are not supported: ONNX opset 17 and TensorRT 8.5 quantize to 8-bit integers only",
            "remove num_bits",
        )
        for part, spec in (("input", rule.input), ("weight", rule.weight)):
            at, share = f"{where}.{part}.percentile", spec.percentile
            if spec.calibrator == "percentile":
                hint = 'write { calibrator = "percentile", percentile = 99.99 }'
                refuse(share is not None, at, "the percentile calibrator needs a percentile", hint)
                refuse(0 < (share or 0) <= 100, at, f"{share} is not in (0, 100]")
            else:
                refuse(share is None, at, f"the {spec.calibrator} calibrator takes no percentile", "remove it")
    _check_plan(recipe, refuse)
    refuse(13 <= recipe.export.opset <= 21, "export.opset", f"{recipe.export.opset} is not in 13 to 21")
    repository = recipe.repository
    refuse(repository.max_batch_size >= 0, "repository.max_batch_size", "must not be negative")
    for key in ("preferred_batch_sizes", "warmup_batch_sizes"):
        for size in getattr(repository, key):
            refuse(
                1 <= size <= max(1, repository.max_batch_size),
                f"repository.{key}",
                f"{size} is not between 1 and max_batch_size ({repository.max_batch_size})",
            )
    refuse(repository.instance_count >= 1, "repository.instance_count", "must be at least 1")
    refuse(repository.keep_versions >= 1, "repository.keep_versions", "must be at least 1")


def _check_plan(recipe: Recipe, refuse: Callable[..., None]) -> None:
    """Check ``[compile.tensorrt]``; whether profiles fit the inputs is for the target to say."""
    spec = recipe.compile.tensorrt
    refuse(spec.workspace_mib >= 1, "compile.tensorrt.workspace_mib", "must be at least 1")
    level = spec.optimization_level
    refuse(level is None or 0 <= level <= 5, "compile.tensorrt.optimization_level", f"{level} is not in 0 to 5")
    for place, item in enumerate(spec.profiles):
        refuse(
            1 <= item.min_batch <= item.opt_batch <= item.max_batch,
            f"compile.tensorrt.profiles[{place}]",
            f"1 <= min_batch <= opt_batch <= max_batch does not hold: {item.min_batch}, {item.opt_batch}, "
            f"{item.max_batch}",
            "give all three: what is left out is 1, 8 and 64",
        )
