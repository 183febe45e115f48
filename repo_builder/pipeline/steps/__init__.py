"""The table of steps: the recipe's table → what the step is. A new one is a class there, a file here and a row."""

from __future__ import annotations

from typing import Any

from repo_builder.core.recipe import steps as tables
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
    tables.DecodeImage: decode_image.FORM,
    tables.Tokenize: tokenize.FORM,
    tables.Call: call.FORM,
    tables.Resize: resize.FORM,
    tables.Crop: crop.FORM,
    tables.Normalise: normalise.FORM,
    tables.Turn: layout.FORM,
    tables.Cast: cast.FORM,
    tables.Softmax: softmax.FORM,
    tables.TopK: top_k.FORM,
    tables.Boxes: boxes.FORM,
    tables.MeanPool: mean_pool.FORM,
    tables.UnitLength: unit_length.FORM,
}
