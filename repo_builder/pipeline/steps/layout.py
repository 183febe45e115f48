"""``layout``: an image's channels first instead of last, or back."""

from __future__ import annotations

from collections.abc import Sequence

from repo_builder.core.recipe.steps import Turn
from repo_builder.pipeline.form import Form, Kind, Unfit, numbers, shaped
from repo_builder.pipeline.writer import Writer


def _gives(spec: Turn, taken: Sequence[Kind]) -> Sequence[Kind]:
    dtype, shape = taken[0]
    numbers(taken[0])
    if len(shape) != 3:
        raise Unfit("takes an image of three dimensions")
    rows, columns, channels = shape if spec.to == "chw" else (shape[1], shape[2], shape[0])
    return [(dtype, shaped(rows, columns, channels, spec.to))]


def _write(spec: Turn, writer: Writer, taken: Sequence[tuple[str, Kind]], _: tuple[str, ...]) -> Sequence[str]:
    return [writer.op("Transpose", taken[0][0], perm=[0, 3, 1, 2] if spec.to == "chw" else [0, 2, 3, 1])]


FORM = Form(gives=_gives, write=_write)
