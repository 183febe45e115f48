"""``softmax``: one number a class → probabilities, along the last dimension."""

from __future__ import annotations

from collections.abc import Sequence

from repo_builder.core.recipe.steps import Softmax
from repo_builder.core.tensors import DType
from repo_builder.pipeline.form import Form, Kind, Unfit
from repo_builder.pipeline.writer import Writer

_FLOATS = (DType.FP32, DType.FP16, DType.FP64)


def _gives(spec: Softmax, taken: Sequence[Kind]) -> Sequence[Kind]:
    if taken[0][0] not in _FLOATS or not taken[0][1]:
        raise Unfit("takes floating-point numbers, one a class")
    return [taken[0]]


def _write(spec: Softmax, writer: Writer, taken: Sequence[tuple[str, Kind]], _: tuple[str, ...]) -> Sequence[str]:
    return [writer.op("Softmax", taken[0][0], axis=-1)]


FORM = Form(names=("probabilities",), gives=_gives, write=_write)
