"""``top_k``: one number a class → the best classes, their scores and their names, best first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repo_builder.core.recipe.steps import TopK
from repo_builder.core.tensors import DType
from repo_builder.pipeline.form import Form, Kind, Unfit
from repo_builder.pipeline.writer import Writer


def _gives(spec: TopK, taken: Sequence[Kind]) -> Sequence[Kind]:
    dtype, shape = taken[0]
    if dtype not in (DType.FP32, DType.FP64) or len(shape) != 1:
        raise Unfit("takes fp32, one number a class")
    if -1 < shape[0] < spec.k:
        raise Unfit(f"has k = {spec.k} and takes as many classes")
    if spec.labels and shape[0] != len(spec.labels):
        raise Unfit(f"has {len(spec.labels)} labels and takes as many classes")
    labels: list[Kind] = [(DType.STRING, (spec.k,))] if spec.with_labels else []
    return [(DType.INT64, (spec.k,)), (dtype, (spec.k,)), *labels]


def _write(spec: TopK, writer: Writer, taken: Sequence[tuple[str, Kind]], classes: tuple[str, ...]) -> Sequence[str]:
    name, (_, shape) = taken[0]
    scores, places = writer.ops("TopK", name, writer.constant([spec.k]), outputs=2, axis=-1)
    if not spec.with_labels:
        return [places, scores]
    names = spec.labels or classes
    if len(names) != shape[0]:
        said = f"the data names {len(names)} classes" if names else "the data names no classes"
        raise Unfit(f"needs a label for each class, and {said}; give it labels, or with_labels = false")
    known = writer.constant(np.array(names, object))
    return [places, scores, writer.op("Gather", known, places, axis=0)]


FORM = Form(names=("classes", "scores", "labels"), gives=_gives, write=_write)
