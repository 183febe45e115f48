"""``unit_length``: a vector → the same of length 1, along the last dimension."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repo_builder.core.recipe.steps import UnitLength
from repo_builder.core.tensors import DType
from repo_builder.pipeline.form import Form, Kind, Unfit
from repo_builder.pipeline.writer import Writer

_LEAST = 1e-12  # a vector of zeros stays one


def _gives(spec: UnitLength, taken: Sequence[Kind]) -> Sequence[Kind]:
    if taken[0][0] is not DType.FP32 or not taken[0][1]:
        raise Unfit("takes vectors of fp32")
    return [taken[0]]


def _write(spec: UnitLength, writer: Writer, taken: Sequence[tuple[str, Kind]], _: tuple[str, ...]) -> Sequence[str]:
    name = taken[0][0]
    length = writer.op("Sqrt", writer.total(writer.op("Mul", name, name), -1))
    return [writer.op("Div", name, writer.op("Max", length, writer.constant(np.array([_LEAST], np.float32))))]


FORM = Form(gives=_gives, write=_write)
