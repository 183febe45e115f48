"""One scorer for every form of a model that a build makes: fp32, fake-quantized, exported, compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from repo_builder.core.recipe import Recipe
from repo_builder.core.records import AccuracyRecord
from repo_builder.core.tensors import Array
from repo_builder.datasets import Samples
from repo_builder.measure.judge import accuracy


def score_forms(
    outputs: Mapping[str, Array], samples: Samples, classes: tuple[str, ...], recipe: Recipe
) -> list[AccuracyRecord]:
    """Score forms of one model on one set of samples; each is compared with the one before it.

    Args:
        outputs: Form → its first output on the samples, shape (n, ...), in the order in which one derives from another.
        samples: The held-out samples.
        classes: Names of the classes.
        recipe: Tells whether outputs are classes.
    """
    records: list[AccuracyRecord] = []
    above: Array | None = None
    for form, values in outputs.items():
        record = AccuracyRecord(form=form.replace("_", "-"), samples=len(values))
        if samples.labels is not None and recipe.measure.task == "classification":
            result = accuracy.score(values, samples.labels, classes)
            record = dataclasses.replace(record, top1=result.top1, low=result.low, high=result.high)
        if above is not None:
            name = recipe.model.outputs[0].name
            record = dataclasses.replace(record, outputs=(accuracy.compare(above, values, name=name),))
        records.append(record)
        above = values
    return records
