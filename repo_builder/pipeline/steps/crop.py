"""``crop``: the middle of an image; one that is smaller gets a border of zeros first."""

from __future__ import annotations

from collections.abc import Sequence

from repo_builder.core.recipe.steps import Crop
from repo_builder.pipeline.form import Form, Kind, image, shaped
from repo_builder.pipeline.writer import Writer


def _gives(spec: Crop, taken: Sequence[Kind]) -> Sequence[Kind]:
    channels = image(taken[0], spec.layout)[2]
    return [(taken[0][0], shaped(spec.height, spec.width, channels, spec.layout))]


def _write(spec: Crop, writer: Writer, taken: Sequence[tuple[str, Kind]], _: tuple[str, ...]) -> Sequence[str]:
    name, kind = taken[0]
    rows, columns, _channels = image(kind, spec.layout)
    first = 2 if spec.layout == "chw" else 1
    wanted = writer.constant([spec.height, spec.width])
    none, two = writer.constant([0, 0]), writer.constant([2])
    if not (rows >= spec.height and columns >= spec.width):
        lack = writer.op("Max", writer.op("Sub", wanted, writer.sizes(name, first, first + 2)), none)
        before = writer.op("Div", lack, two)
        outer, inner = ([0], [0, 0]) if first == 1 else ([0, 0], [0])  # dimensions in front of the sides, and behind
        ends = [
            item
            for sides in (before, writer.op("Sub", lack, before))
            for item in (writer.constant(outer), sides, *([writer.constant([0])] if len(inner) == 2 else []))
        ]
        name = writer.op("Pad", name, writer.op("Concat", *ends, axis=0))
    start = writer.op("Div", writer.op("Sub", writer.sizes(name, first, first + 2), wanted), two)
    end = writer.op("Add", start, wanted)
    return [writer.op("Slice", name, start, end, writer.constant([first, first + 1]))]


FORM = Form(gives=_gives, write=_write)
