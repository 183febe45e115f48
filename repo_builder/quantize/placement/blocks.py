"""Weights as codes of 4 bits, a scale for every block of an output's weights: numpy only, one weight at a time.

A linear layer's weight is (inputs, outputs) here. Each output's weights are cut along the inputs into blocks of 16 to
256, the last one shorter where they do not divide. A block's codes are

    signed:    c = clip(rint(w / s), −8, 7),      w ≈ s · c,         s = amax / 7
    unsigned:  c = clip(rint(w / s) + z, 0, 15),  w ≈ s · (c − z),   s = (high − low) / 15,  z = rint(−low / s)

with low ≤ 0 ≤ high, so that 0 is exact, all in float32 and ties to even: round to nearest, the calibrator ``max``.
``mse`` also tries narrower ranges, in steps of 1/64 of the widest down to half of it, and takes for each block the one
with the least squared error; of equal ones the widest.
"""

from __future__ import annotations

import numpy as np

from repo_builder.core.tensors import Array
from repo_builder.quantize.placement.codes import LEAST_SCALE
from repo_builder.quantize.ranges import BlockRange

BLOCK = 32
_NARROWER = 64  # parts of the widest range
_NARROWEST = 32
_AT_ONCE = 1 << 20  # weights that a search holds in several copies
_ONE = np.float32(1)


def find(weight: Array, *, block: int = BLOCK, symmetric: bool = False, calibrator: str = "max") -> BlockRange:
    """Return how a weight becomes codes.

    Args:
        weight: float32 (inputs, outputs), finite.
        block: Weights of an output that share a scale.
        symmetric: Whether codes are signed.
        calibrator: ``mse``; or ``max``, which ``gptq`` starts from (``compensate.py``).
    """
    inputs, outputs = weight.shape
    count = -(-inputs // block)
    scale = np.empty((count, outputs), np.float32)
    zero = None if symmetric else np.empty((count, outputs), np.uint8)
    columns = max(1, _AT_ONCE // (count * block))
    for start in range(0, outputs, columns):
        part = slice(start, start + columns)
        found = _of_part(_cut(weight[:, part], block), symmetric, calibrator)
        scale[:, part] = found[0]
        if zero is not None and found[1] is not None:
            zero[:, part] = found[1]
    return BlockRange(block=block, inputs=inputs, scale=scale, zero=zero)


def codes(weight: Array, found: BlockRange) -> Array:
    """Return a weight's codes, (inputs, outputs): int8 from −8 to 7, or uint8 from 0 to 15 where there is a zero point.

    Args:
        weight: float32 (inputs, outputs).
        found: From ``find``.
    """
    if found.codes is not None:
        return found.codes
    made = np.empty(weight.shape, np.int8 if found.zero is None else np.uint8)
    for place in range(len(found.scale)):
        rows = slice(place * found.block, (place + 1) * found.block)
        zero = None if found.zero is None else found.zero[place]
        made[rows] = _codes(weight[rows], found.scale[place], zero)
    return made


def values(made: Array, found: BlockRange) -> Array:
    """Return what codes stand for, float32 (inputs, outputs): what DequantizeLinear computes."""
    steps = made.astype(np.float32)
    if found.zero is not None:
        steps -= _each(found.zero, found, len(made))
    return np.asarray(steps * _each(found.scale, found, len(made)), np.float32)


def nearest(row: Array, found: BlockRange, place: int) -> tuple[Array, Array]:
    """Return the nearest codes of one input's weights, and what they stand for, each (outputs,).

    Args:
        row: float32 (outputs,).
        found: From ``find``.
        place: The block's number.
    """
    scale, zero = found.scale[place], None if found.zero is None else found.zero[place]
    made = _codes(row, scale, zero)
    steps = made.astype(np.float32)
    return made, (steps if zero is None else steps - zero) * scale


def _each(of_blocks: Array, found: BlockRange, inputs: int) -> Array:
    return np.repeat(of_blocks, found.block, axis=0)[:inputs]


def _cut(weight: Array, block: int) -> Array:
    """Return (blocks, block, outputs), filled up with zeros, which are exact in any range."""
    short = -len(weight) % block
    whole = np.pad(weight, ((0, short), (0, 0))) if short else weight
    return np.ascontiguousarray(whole, np.float32).reshape(-1, block, weight.shape[1])


def _of_part(parts: Array, symmetric: bool, calibrator: str) -> tuple[Array, Array | None]:
    """Return scales and zero points (blocks, outputs)."""
    low, high = np.minimum(parts.min(axis=1), 0), np.maximum(parts.max(axis=1), 0)
    best = _range(low, high, _ONE, symmetric)
    if calibrator != "mse":
        return best
    least = _error(parts, *best)
    for step in range(_NARROWER - 1, _NARROWEST - 1, -1):
        tried = _range(low, high, np.float32(step / _NARROWER), symmetric)
        error = _error(parts, *tried)
        better = error < least
        least = np.where(better, error, least)
        zero = None if best[1] is None or tried[1] is None else np.where(better, tried[1], best[1])
        best = np.where(better, tried[0], best[0]), zero
    return best


def _range(low: Array, high: Array, share: np.float32, symmetric: bool) -> tuple[Array, Array | None]:
    if symmetric:
        wide = np.maximum(-low, high) * share / np.float32(7)
        return _steps(wide), None
    scale = _steps((high * share - low * share) / np.float32(15))
    return scale, np.clip(np.rint(-(low * share) / scale), 0, 15).astype(np.uint8)


def _steps(wide: Array) -> Array:
    """Return scales that are normal float32; a block of zeros is exact with any, and has 1."""
    return np.where(wide > 0, np.maximum(wide, np.float32(LEAST_SCALE)), _ONE).astype(np.float32)


def _codes(weight: Array, scale: Array, zero: Array | None) -> Array:
    if zero is None:
        return np.clip(np.rint(weight / scale), -8, 7).astype(np.int8)
    return np.clip(np.rint(weight / scale) + zero.astype(np.float32), 0, 15).astype(np.uint8)


def _error(parts: Array, scale: Array, zero: Array | None) -> Array:
    """Return the squared error of each block, float32 (blocks, outputs)."""
    step = scale[:, None]
    made = np.rint(parts / step)
    if zero is None:
        np.clip(made, -8, 7, out=made)
    else:
        offset = zero.astype(np.float32)[:, None]
        np.clip(made, -offset, 15 - offset, out=made)
    made *= step
    made -= parts
    np.square(made, out=made)
    return np.asarray(made.sum(axis=1))
