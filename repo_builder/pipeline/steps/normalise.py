"""``normalise``: ``(x * scale - mean) / std`` in fp32; mean and std are one number, or one a channel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repo_builder.core.recipe.steps import Normalise
from repo_builder.core.tensors import Array, DType
from repo_builder.pipeline.form import Form, Kind, Unfit, numbers
from repo_builder.pipeline.writer import Writer


def _gives(spec: Normalise, taken: Sequence[Kind]) -> Sequence[Kind]:
    numbers(taken[0])
    shape = taken[0][1]
    channels = (shape[0] if spec.layout == "chw" else shape[-1]) if shape else 1
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) > 1 and channels not in (-1, len(values)):
            raise Unfit(f'has {len(values)} numbers in {name} and takes as many channels (layout = "{spec.layout}")')
    return [(DType.FP32, shape)]


def _write(spec: Normalise, writer: Writer, taken: Sequence[tuple[str, Kind]], _: tuple[str, ...]) -> Sequence[str]:
    name, (dtype, shape) = taken[0]
    values = name if dtype is DType.FP32 else writer.cast(name, DType.FP32)
    if spec.scale != 1:
        values = writer.op("Mul", values, writer.constant(np.array(spec.scale, np.float32)))
    if any(spec.mean):
        values = writer.op("Sub", values, writer.constant(_broadcast(spec, spec.mean, len(shape))))
    if set(spec.std) != {1.0}:
        values = writer.op("Div", values, writer.constant(_broadcast(spec, spec.std, len(shape))))
    return [values if values != name else writer.op("Identity", name)]


def _broadcast(spec: Normalise, given: tuple[float, ...], rank: int) -> Array:
    values = np.array(given, np.float32)
    return values.reshape(-1, *[1] * (rank - 1)) if spec.layout == "chw" and len(given) > 1 else values


FORM = Form(gives=_gives, write=_write)
