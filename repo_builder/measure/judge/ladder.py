"""The accuracy ladder: the same held-out samples through every form of a model, from torch to the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from repo_builder.core.errors import MeasureError
from repo_builder.core.records import AccuracyRecord
from repo_builder.core.tensors import Array
from repo_builder.measure.judge import accuracy
from repo_builder.measure.judge.baseline import ROUNDING, mcnemar
from repo_builder.results import Ladder


def climb(
    outputs: Mapping[str, Array],
    labels: Array | None,
    *,
    classes: tuple[str, ...] = (),
    accuracy_tolerance: float,
    output_tolerance: float | None = None,
) -> Ladder:
    """Compare every rung with the one above it.

    A rung departs when its top-1 is more than ``accuracy_tolerance`` below that of the rung above; where outputs are
    not classes, when an output differs by more than ``output_tolerance``.

    Args:
        outputs: Form → outputs ``(n, ...)`` on the same samples, from the first form to the last; any subset.
        labels: ``(n,)``; None where outputs are not classes.
        classes: Names of the classes.
        accuracy_tolerance: Fall of top-1, as a fraction.
        output_tolerance: Largest absolute difference, for outputs that are not classes.

    Raises:
        MeasureError: Shapes differ between rungs, or an output is not finite; names the form.
    """
    rungs: list[AccuracyRecord] = []
    above: Array | None = None
    right_above: Array | None = None
    for form, values in outputs.items():
        try:
            rung, right = _rung(form, values, labels, classes)
            if above is not None:
                rung = _compared(rung, above, values, None if labels is not None else output_tolerance)
        except MeasureError as error:
            raise MeasureError(error.message, where=form, hint=error.hint) from None
        if right is not None and right_above is not None:
            rung = _judged(rung, right_above, right, rungs[-1], accuracy_tolerance)
        elif above is not None and output_tolerance is not None and rung.max_abs_diff is not None:
            rung = replace(rung, departs=rung.max_abs_diff > output_tolerance)
        rungs.append(rung)
        above, right_above = values, right
    culprit = next((item.form for item in rungs if item.departs), "")
    tolerance = accuracy_tolerance if labels is not None else output_tolerance
    return Ladder(rungs=tuple(rungs), culprit=culprit, tolerance=tolerance)


def _rung(
    form: str, values: Array, labels: Array | None, classes: tuple[str, ...]
) -> tuple[AccuracyRecord, Array | None]:
    if labels is None:
        accuracy.check_finite(values)
        return AccuracyRecord(form=form, samples=len(values)), None
    scored = accuracy.score(values, labels, classes)
    rung = AccuracyRecord(form=form, samples=scored.samples, top1=scored.top1, low=scored.low, high=scored.high)
    return rung, values.argmax(axis=1) == labels


def _compared(rung: AccuracyRecord, above: Array, values: Array, tolerance: float | None) -> AccuracyRecord:
    return replace(rung, outputs=(accuracy.compare(above, values, tolerance=tolerance),))


def _judged(
    rung: AccuracyRecord, right_above: Array, right: Array, above: AccuracyRecord, tolerance: float
) -> AccuracyRecord:
    lost, won = int(np.sum(right_above & ~right)), int(np.sum(~right_above & right))
    fall = (above.top1 or 0.0) - (rung.top1 or 0.0)
    return replace(rung, p_value=mcnemar(lost, won), departs=fall > tolerance + ROUNDING)
