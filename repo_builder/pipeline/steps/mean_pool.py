"""``mean_pool``: vectors of tokens and their mask → the mean of the tokens that count."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repo_builder.core.recipe.steps import MeanPool
from repo_builder.core.tensors import DType
from repo_builder.pipeline.form import Form, Kind, Unfit
from repo_builder.pipeline.writer import Writer

_LEAST = 1e-9  # a text without a token has the mean zero


def _gives(spec: MeanPool, taken: Sequence[Kind]) -> Sequence[Kind]:
    (dtype, vectors), (mask_dtype, mask) = taken
    fits = len(vectors) == 2 and len(mask) == 1 and (vectors[0] == mask[0] or -1 in (vectors[0], mask[0]))
    if dtype is not DType.FP32 or mask_dtype.numpy.kind not in "iub" or not fits:
        raise Unfit("takes fp32[tokens, width] and a mask of whole numbers [tokens]")
    return [(DType.FP32, vectors[1:])]


def _write(spec: MeanPool, writer: Writer, taken: Sequence[tuple[str, Kind]], _: tuple[str, ...]) -> Sequence[str]:
    weights = writer.op("Unsqueeze", writer.cast(taken[1][0], DType.FP32), writer.constant([2]))
    total = writer.total(writer.op("Mul", taken[0][0], weights), 1, keep=False)
    count = writer.op("Max", writer.total(weights, 1, keep=False), writer.constant(np.array([_LEAST], np.float32)))
    return [writer.op("Div", total, count)]


FORM = Form(takes=(2, 2), names=("embedding",), gives=_gives, write=_write, also="attention_mask")
