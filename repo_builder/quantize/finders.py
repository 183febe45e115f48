"""Who finds a range from the values of a tensor: our own calibrators, or a library's quantizers around them.

Every back end is shown the same tensors of the same fp32 graph, so their ranges agree to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from repo_builder.core import loading
from repo_builder.core.errors import RecipeError, did_you_mean
from repo_builder.core.recipe import InputQuantizer, WeightQuantizer
from repo_builder.core.tensors import Array
from repo_builder.quantize.calibrators import Calibrator

# name → ("module:class", the extra that installs what it imports)
BACKENDS: dict[str, tuple[str, str]] = {
    "onnxruntime": ("repo_builder.quantize.finders:own", "build"),
    "modelopt": ("repo_builder.quantize.modelopt:finder", "build"),
    "pytorch-quantization": ("repo_builder.quantize.pytorch_quantization:finder", "pytorch-quantization"),
}


class Finder(Protocol):
    """Finds one range for each channel from values that come in batches."""

    def observe(self, values: Array) -> None:
        """Take values, float32, the channels on the first axis; for one channel any shape will do.

        Raises:
            QuantizeError: A value is NaN or infinite.
        """

    def amax(self) -> Array:
        """Return the ranges, float32 (channels,).

        Raises:
            QuantizeError: There were no values, or they leave no range.
        """


class FinderMaker(Protocol):
    """A back end: makes finders."""

    def __call__(self, spec: InputQuantizer | WeightQuantizer, *, channels: int, where: str) -> Finder:
        """Return a finder.

        Args:
            spec: How the range is found.
            channels: Number of ranges, 1 for a per-tensor range.
            where: The layer or tensor that errors name.
        """


class Float8Input(InputQuantizer):
    """How an fp8 layer's input range is found, where that is another one than int8's."""


class Float8Weight(WeightQuantizer):
    """How an fp8 layer's weight range is found, where that is another one than int8's."""


def float8_input(spec: InputQuantizer) -> InputQuantizer:
    """Return a rule's calibrator for an fp8 layer: ``mse`` alone depends on what the codes are of."""
    return Float8Input(calibrator="mse") if spec.calibrator == "mse" else spec


def float8_weight(spec: WeightQuantizer) -> WeightQuantizer:
    """Return the same of a weight."""
    return Float8Weight(calibrator="mse", per_channel=spec.per_channel) if spec.calibrator == "mse" else spec


def calibrator_name(spec: InputQuantizer | WeightQuantizer) -> str:
    """Return a calibrator as the table shows it, as in ``percentile 99.99`` or ``mse fp8``."""
    if isinstance(spec, Float8Input | Float8Weight):
        return f"{spec.calibrator} fp8"
    return spec.calibrator if spec.percentile is None else f"{spec.calibrator} {spec.percentile:g}"


def calibrator(spec: InputQuantizer | WeightQuantizer, *, channels: int, where: str | None) -> Calibrator:
    """Return one of our own calibrators, which every back end puts behind its interface."""
    precision: Literal["int8", "fp8"] = "fp8" if isinstance(spec, Float8Input | Float8Weight) else "int8"
    return Calibrator(spec.calibrator, spec.percentile, channels=channels, where=where, precision=precision)


def own(spec: InputQuantizer | WeightQuantizer, *, channels: int, where: str) -> Finder:
    """Return our own calibrator."""
    return calibrator(spec, channels=channels, where=where)


def named_in(table: Mapping[str, tuple[str, str]], name: str) -> Any:  # noqa: ANN401 - what the table's rows make
    """Return what a table of back ends names: name → ("module:attribute", the extra that installs what it imports).

    Raises:
        RecipeError: There is none of that name.
        MissingDependency: Its library is not installed.
    """
    if name not in table:
        message = f"'{name}' is no quantization back end"
        raise RecipeError(message, where="quantize.backend", hint=did_you_mean(name, table))
    target, extra = table[name]
    return loading.load(target, extra=extra, what=f"the back end '{name}'")


def backend(name: str) -> FinderMaker:
    """Return a back end by name.

    Raises:
        RecipeError: There is none of that name.
        MissingDependency: Its library is not installed.
    """
    maker: FinderMaker = named_in(BACKENDS, name)
    return maker
