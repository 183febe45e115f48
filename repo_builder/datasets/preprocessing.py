"""What turns raw samples into a model's inputs. numpy only, so that torch, ONNX Runtime and the client share it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repo_builder.core.errors import RecipeError
from repo_builder.core.tensors import Array


def resize(images: Array, height: int, width: int) -> Array:
    """Resize images bilinearly, with half-pixel centres and clamped edges (torch's ``align_corners=False``).

    Args:
        images: Any float array whose last two dimensions are rows and columns.
        height: Rows wanted.
        width: Columns wanted.
    """
    return _interpolate(_interpolate(images, height, -2), width, -1)


def _interpolate(values: Array, size: int, axis: int) -> Array:
    have = values.shape[axis]
    place = np.clip((np.arange(size) + 0.5) * have / size - 0.5, 0, have - 1)
    low = np.floor(place).astype(np.int64)
    weight = (place - low).astype(values.dtype)
    if axis == -2:
        weight = weight[:, None]
    below, above = values.take(low, axis), values.take(np.minimum(low + 1, have - 1), axis)
    result: Array = below + (above - below) * weight
    return result


def normalise(
    values: Array,
    *,
    scale: float | Sequence[float] = 1.0,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
) -> Array:
    """Return ``(values * scale - mean) / std`` in fp32; each of the three is one number, or one a channel.

    Args:
        values: Samples (n, channels, ...).
        scale: Factor on the raw values, as 1/255 for 8-bit images.
        mean: Subtracted from the scaled values.
        std: Divides the centred values.

    Raises:
        RecipeError: One of the three is no number, zero where it divides, or has another length than the channels.
    """
    factor, centre, spread = (
        _per_channel(item, name, values) for name, item in (("scale", scale), ("mean", mean), ("std", std))
    )
    if not spread.all():
        raise RecipeError("0 cannot divide", where="data.arguments.std")
    result = values.astype(np.float32)
    result *= factor  # in place: an image set is large
    result -= centre
    result /= spread
    return result


def _per_channel(given: float | Sequence[float], name: str, values: Array) -> Array:
    """Return numbers in a shape that broadcasts over samples."""
    where = f"data.arguments.{name}"
    try:
        numbers = np.asarray(given, np.float32)
    except (ValueError, TypeError):
        raise RecipeError(f"{given!r} is neither a number nor an array of numbers", where=where) from None
    if numbers.ndim == 0:
        return numbers
    channels = values.shape[1] if values.ndim > 1 else 1
    if numbers.shape != (channels,):
        raise RecipeError(f"has {numbers.size} numbers for {channels} channels", where=where)
    return numbers.reshape(-1, *[1] * (values.ndim - 2))
