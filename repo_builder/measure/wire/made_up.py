"""Inputs that are made up where nobody gave any: in their own type, and no more of them than are sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from repo_builder.core.errors import MeasureError, did_you_mean
from repo_builder.core.tensors import Array, DType, TensorSpec
from repo_builder.measure.wire.model import ServedModel

MOST_BYTES = 64 << 20  # of all made-up samples together; one is made however large it is
STRING_LENGTH = 16
_LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz0123456789", dtype=np.uint8)


def random_samples(
    model: ServedModel,
    count: int,
    shapes: Mapping[str, Sequence[int]],
    seed: int,
    *,
    string_length: int = STRING_LENGTH,
) -> dict[str, Array]:
    """Make up inputs, ``(n, *shape)`` each: floats uniform in [0, 1), integers 0 to 9, strings of letters and digits.

    Optional inputs are left out unless ``shapes`` names them.

    Args:
        model: Whose inputs.
        count: Number of samples; fewer are made where they would take more than ``MOST_BYTES``, but one at the least.
        shapes: Shapes, batch left out, of inputs with dynamic dimensions.
        seed: Seed.
        string_length: Length of every string, bytes.

    Raises:
        MeasureError: A dynamic dimension has no size, or a shape does not fit.
    """
    for unknown in set(shapes) - {spec.name for spec in model.inputs}:
        hint = did_you_mean(unknown, (spec.name for spec in model.inputs))
        raise MeasureError(f"the model '{model.name}' has no input '{unknown}'", where="--shape", hint=hint)
    chosen = {
        spec.name: (spec, _shape(model, spec, shapes.get(spec.name)))
        for spec in model.inputs
        if spec.name in shapes or spec.name not in model.optional
    }
    each = sum(_bytes(spec, shape, string_length) for spec, shape in chosen.values())
    number = max(1, min(count, MOST_BYTES // max(1, each)))
    generator = np.random.default_rng(seed)
    return {
        name: _random(generator, spec.dtype, (number, *shape), string_length) for name, (spec, shape) in chosen.items()
    }


def _shape(model: ServedModel, spec: TensorSpec, given: Sequence[int] | None) -> tuple[int, ...]:
    shape = tuple(given or spec.shape)
    if given is None and not model.batch_axis and len(shape) > 1 and shape[0] == -1 and -1 not in shape[1:]:
        shape = (1, *shape[1:])  # whether or not it counts samples, one is the least there can be
    if -1 in shape:
        example = ",".join(str(size if size > 0 else 16) for size in shape)
        raise MeasureError(
            f"the input {spec} has dynamic dimensions", hint=f"give its shape, as in --shape {spec.name}:{example}"
        )
    if not spec.fits(shape):
        raise MeasureError(f"the shape {list(shape)} does not fit the input {spec}", where="--shape")
    return shape


def _bytes(spec: TensorSpec, shape: Sequence[int], string_length: int) -> int:
    elements = int(np.prod(shape, dtype=np.int64)) if shape else 1
    # a string is a Python object beside its bytes
    return elements * (string_length + 64 if spec.dtype is DType.STRING else spec.dtype.numpy.itemsize)


def _random(generator: np.random.Generator, dtype: DType, shape: tuple[int, ...], string_length: int) -> Array:
    if dtype is DType.STRING:
        total = int(np.prod(shape, dtype=np.int64))
        letters = _LETTERS[generator.integers(0, len(_LETTERS), (total, max(1, string_length)), dtype=np.uint8)]
        strings = np.empty(total, dtype=object)
        strings[:] = [row.tobytes() for row in letters]
        return strings.reshape(shape)
    if dtype is DType.BOOL:
        return generator.integers(0, 2, shape, dtype=np.uint8).view(bool)
    if dtype is DType.BF16:  # its bits, the upper half of an fp32's
        bits = generator.random(shape, dtype=np.float32).view(np.uint32)
        bits >>= np.uint32(16)
        return bits.astype(np.uint16)
    if dtype is DType.FP16:
        halves: Array = generator.integers(0, 2048, shape, dtype=np.uint16).astype(np.float16) / np.float16(2048)
        return halves
    if dtype.numpy.kind == "f":
        made: Array = generator.random(shape, dtype=dtype.numpy)
        return made
    return generator.integers(0, 10, shape, dtype=dtype.numpy)
