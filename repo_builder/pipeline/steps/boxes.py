"""``boxes``: a detector's boxes and scores → the best that do not overlap (ONNX's NonMaxSuppression), a fixed number.

NonMaxSuppression gives rows of a batch one behind the other, as many as there are. To keep samples apart, what it
selects goes back to its place among all scores, everything else is 0, and the best of each sample are taken from there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repo_builder.core.recipe.steps import Boxes
from repo_builder.core.tensors import DType
from repo_builder.pipeline.form import Form, Kind, Unfit
from repo_builder.pipeline.writer import Writer


def _sizes(taken: Sequence[Kind]) -> tuple[int, int]:
    """Return how many boxes and classes there are."""
    shapes = [shape for _, shape in taken]
    if any(dtype is not DType.FP32 or len(shape) != 2 for dtype, shape in taken) or min(map(min, shapes)) < 1:
        raise Unfit("takes fp32 of two fixed dimensions")
    if len(taken) == 1:
        if shapes[0][0] < 5:
            raise Unfit("takes one tensor [4 + classes, n], or boxes [n, 4] and scores [n, classes]")
        return shapes[0][1], shapes[0][0] - 4
    if shapes[0][1] != 4 or shapes[1][0] != shapes[0][0]:
        raise Unfit("takes boxes [n, 4] and scores [n, classes]")
    return shapes[1][0], shapes[1][1]


def _gives(spec: Boxes, taken: Sequence[Kind]) -> Sequence[Kind]:
    count, classes = _sizes(taken)
    most = min(spec.most, count * classes)
    return [(DType.FP32, (most, 4)), (DType.FP32, (most,)), (DType.INT64, (most,)), (DType.INT64, (1,))]


def _write(spec: Boxes, writer: Writer, taken: Sequence[tuple[str, Kind]], _: tuple[str, ...]) -> Sequence[str]:
    count, classes = _sizes([kind for _, kind in taken])
    boxes, scores = _split(writer, [name for name, _ in taken])
    if spec.form == "cxcywh":
        boxes = _corners(writer, boxes)
    kept = _kept(spec, writer, boxes, scores)
    flat = writer.op("Reshape", kept, writer.constant([-1, classes * count]))
    best, places = writer.ops("TopK", flat, writer.constant([min(spec.most, count * classes)]), outputs=2, axis=-1)
    number = writer.constant(np.array(count, np.int64))
    found = writer.op("Greater", best, writer.constant(np.array(0, np.float32)))
    of_class = writer.op("Div", places, number)
    of_box = writer.op("Sub", places, writer.op("Mul", of_class, number))
    rows = writer.op("GatherND", boxes, writer.op("Unsqueeze", of_box, writer.constant([2])), batch_dims=1)
    wide = writer.op("Unsqueeze", found, writer.constant([2]))
    whole = writer.cast(found, DType.INT64)
    return [
        writer.op("Where", wide, rows, writer.constant(np.array(0, np.float32))),
        best,
        writer.op("Mul", of_class, whole),
        writer.total(whole, 1),
    ]


def _split(writer: Writer, names: Sequence[str]) -> tuple[str, str]:
    """Return boxes (batch, n, 4) and scores (batch, classes, n)."""
    if len(names) == 2:
        return names[0], writer.op("Transpose", names[1], perm=[0, 2, 1])
    ends = writer.constant([1])
    boxes = writer.op("Slice", names[0], writer.constant([0]), writer.constant([4]), ends)
    scores = writer.op("Slice", names[0], writer.constant([4]), writer.constant([2**31 - 1]), ends)
    return writer.op("Transpose", boxes, perm=[0, 2, 1]), scores


def _corners(writer: Writer, boxes: str) -> str:
    """Return boxes of centre and size as two corners."""
    ends = writer.constant([2])
    centre = writer.op("Slice", boxes, writer.constant([0]), writer.constant([2]), ends)
    size = writer.op("Slice", boxes, writer.constant([2]), writer.constant([4]), ends)
    half = writer.op("Mul", size, writer.constant(np.array(0.5, np.float32)))
    return writer.op("Concat", writer.op("Sub", centre, half), writer.op("Add", centre, half), axis=2)


def _kept(spec: Boxes, writer: Writer, boxes: str, scores: str) -> str:
    """Return the scores (batch, classes, n) with 0 for all that is not selected."""
    selected = writer.op(
        "NonMaxSuppression",
        boxes,
        scores,
        writer.constant([spec.most_per_class]),
        writer.constant(np.array([spec.most_overlap], np.float32)),
        writer.constant(np.array([spec.least_score], np.float32)),
    )
    nothing = writer.op("Mul", scores, writer.constant(np.array(0, np.float32)))
    return writer.op("ScatterND", nothing, selected, writer.op("GatherND", scores, selected))


FORM = Form(takes=(1, 2), names=("boxes", "scores", "classes", "count"), gives=_gives, write=_write)
