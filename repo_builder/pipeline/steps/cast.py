"""``cast``: the same numbers in another type."""

from __future__ import annotations

from collections.abc import Sequence

from repo_builder.core.recipe.steps import Cast
from repo_builder.pipeline.form import Form, Kind, numbers
from repo_builder.pipeline.writer import Writer


def _gives(spec: Cast, taken: Sequence[Kind]) -> Sequence[Kind]:
    numbers(taken[0])
    return [(spec.dtype, taken[0][1])]


def _write(spec: Cast, writer: Writer, taken: Sequence[tuple[str, Kind]], _: tuple[str, ...]) -> Sequence[str]:
    return [writer.cast(taken[0][0], spec.dtype)]


FORM = Form(gives=_gives, write=_write)
