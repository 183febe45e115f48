"""``resize``: an image of another size, by ONNX's Resize: half-pixel centres, no antialiasing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repo_builder.core.recipe.steps import Resize
from repo_builder.core.tensors import DType
from repo_builder.pipeline.form import Form, Kind, image, shaped
from repo_builder.pipeline.writer import Writer


def _size(spec: Resize, rows: int, columns: int) -> tuple[int, int]:
    """Return rows and columns of what comes out, -1 where that is not known before an image comes."""
    if spec.height and spec.width:
        return spec.height, spec.width
    if -1 in (rows, columns):
        return -1, -1
    shorter, side = min(rows, columns), spec.shorter_side or 1
    return rows * side // shorter, columns * side // shorter


def _gives(spec: Resize, taken: Sequence[Kind]) -> Sequence[Kind]:
    rows, columns, channels = image(taken[0], spec.layout)
    return [(DType.FP32, shaped(*_size(spec, rows, columns), channels, spec.layout))]


def _write(spec: Resize, writer: Writer, taken: Sequence[tuple[str, Kind]], _: tuple[str, ...]) -> Sequence[str]:
    name, kind = taken[0]
    rows, columns, _channels = image(kind, spec.layout)
    values = writer.cast(name, DType.FP32)
    if spec.layout == "hwc":
        values = writer.op("Transpose", values, perm=[0, 3, 1, 2])
    size = _size(spec, rows, columns)
    wanted = writer.constant(list(size)) if -1 not in size else _kept(spec, writer, values)
    sizes = writer.op("Concat", writer.sizes(values, 0, 2), wanted, axis=0)
    how = {"nearest_mode": "round_prefer_floor"} if spec.filter == "nearest" else {}
    resized = writer.op(
        "Resize", values, "", "", sizes, mode=spec.filter, coordinate_transformation_mode="half_pixel", **how
    )
    return [writer.op("Transpose", resized, perm=[0, 2, 3, 1]) if spec.layout == "hwc" else resized]


def _kept(spec: Resize, writer: Writer, values: str) -> str:
    """Return the size at which the proportions are kept: each side times the wanted shorter side, over the shorter."""
    sides = writer.sizes(values, 2, 4)
    shorter = writer.op("Min", writer.sizes(values, 2, 3), writer.sizes(values, 3, 4))
    return writer.op("Div", writer.op("Mul", sides, writer.constant(np.array([spec.shorter_side], np.int64))), shorter)


FORM = Form(gives=_gives, write=_write)
