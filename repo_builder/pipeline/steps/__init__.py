"""The table of steps: the recipe's table → what the step is. A new one is a class there, a file here and a row."""

from __future__ import annotations

from typing import Any

from repo_builder.core.recipe import pipeline
from repo_builder.pipeline.form import Form
from repo_builder.pipeline.steps import (
    boxes,
    call,
    cast,
    crop,
    decode_image,
    layout,
    mean_pool,
    normalise,
    resize,
    softmax,
    tokenize,
    top_k,
    unit_length,
)

TABLE: dict[Any, Form] = {
    pipeline.DecodeImage: decode_image.FORM,
    pipeline.Tokenize: tokenize.FORM,
    pipeline.Call: call.FORM,
    pipeline.Resize: resize.FORM,
    pipeline.Crop: crop.FORM,
    pipeline.Normalise: normalise.FORM,
    pipeline.Turn: layout.FORM,
    pipeline.Cast: cast.FORM,
    pipeline.Softmax: softmax.FORM,
    pipeline.TopK: top_k.FORM,
    pipeline.Boxes: boxes.FORM,
    pipeline.MeanPool: mean_pool.FORM,
    pipeline.UnitLength: unit_length.FORM,
}
