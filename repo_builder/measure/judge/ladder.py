"""The accuracy ladder: the same held-out samples through every form of a model, from torch to the server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from repo_builder.core.errors import MeasureError
from repo_builder.core.records import AccuracyRecord, OutputRecord
from repo_builder.core.tensors import Array, TensorSpec
from repo_builder.measure.judge import accuracy
from repo_builder.measure.judge.agreement import MOST_DB, check_finite, compare
from repo_builder.measure.judge.baseline import ROUNDING, mcnemar
from repo_builder.measure.judge.limits import Limits
from repo_builder.results import Ladder

Outputs = Mapping[str, Array]
_CHANCE = 0.05  # a fall with a larger p-value is one that chance explains


def scored_output(outputs: Sequence[TensorSpec], asked: str | None, classes: int) -> str:
    """Return the output that is scored: the one asked for, else the first of one number a class, else the first.

    Args:
        outputs: The model's.
        asked: ``measure.output``.
        classes: Number of classes; 0 where there are none.
    """
    fitting = (item.name for item in outputs if classes and item.shape[-1:] == (classes,))
    return asked or next(fitting, outputs[0].name)


def climb(
    forms: Mapping[str, Outputs],
    labels: Array | None,
    *,
    scored: str,
    limits: Limits,
    classes: tuple[str, ...] = (),
) -> Ladder:
    """Compare every rung, in all of its outputs, with the one above it.

    A rung departs when an output is beyond the limits. The scored output of a classifier is judged by its top-1: it
    departs when that falls by more than the limit, and McNemar's test on the same samples finds the fall beyond chance
    (p < 0.05); by its values only where the form above is itself no better than chance, as labels cannot tell then.

    Args:
        forms: Form → output name → values ``(n, ...)`` on the same samples, first form to last; any subset.
        labels: ``(n,)``, of the scored output; None where it is not classes.
        scored: Name of that output.
        limits: What is accepted.
        classes: Names of the classes.

    Raises:
        MeasureError: Shapes differ between rungs, or an output is not finite; names the form and the output.
    """
    rungs: list[AccuracyRecord] = []
    above: Outputs | None = None
    right_above: Array | None = None
    for form, outputs in forms.items():
        rung, right = _rung(form, outputs, labels, scored, classes)
        if above is not None:
            rung = _compared(rung, above, outputs, limits, labelled=labels is not None)
        if right is not None and right_above is not None:
            rung = _judged(rung, right_above, right, rungs[-1], limits, classes)
        elif above is not None:
            rung = replace(rung, departs=any(item.departs for item in rung.outputs))
        rungs.append(rung)
        above, right_above = outputs, right
    culprit = next((item.form for item in rungs if item.departs), "")
    tolerance = limits.top1_fall if labels is not None else limits.output_tolerance
    return Ladder(rungs=tuple(rungs), culprit=culprit, tolerance=tolerance)


def _rung(
    form: str, outputs: Outputs, labels: Array | None, scored: str, classes: tuple[str, ...]
) -> tuple[AccuracyRecord, Array | None]:
    if scored not in outputs:
        raise MeasureError(f"there is no output '{scored}'; there are {', '.join(outputs)}", where=form)
    values = outputs[scored]
    for name, item in outputs.items():
        with _named(form, name):
            check_finite(item)
    rung = AccuracyRecord(form=form, samples=len(values), output=scored)
    if labels is None:
        return rung, None
    with _named(form, scored):
        found = accuracy.score(values, labels, classes)
    return replace(rung, top1=found.top1, low=found.low, high=found.high), values.argmax(axis=1) == labels


def _compared(
    rung: AccuracyRecord, before: Outputs, outputs: Outputs, limits: Limits, *, labelled: bool
) -> AccuracyRecord:
    least_db = limits.least_db(rung.form)
    found = []
    for name in (item for item in outputs if item in before):
        classes = labelled and name == rung.output
        with _named(rung.form, name):
            one = compare(
                before[name],
                outputs[name],
                name=name,
                tolerance=None if classes else limits.output_tolerance,
                least_db=None if classes else least_db,
            )
        discrete = outputs[name].dtype.kind != "f"
        found.append(replace(one, departs=limits.departure(one, least_db, discrete=discrete)))
    return replace(rung, outputs=tuple(found), worst=min(found, key=_quality).name if found else "")


def _quality(found: OutputRecord) -> tuple[bool, float]:
    """Order outputs from the worst: those that depart, then by signal to noise, or by what is equal."""
    share = (found.agreement or 0.0) * MOST_DB
    return not found.departs, share if found.sqnr_db is None else found.sqnr_db


def _judged(
    rung: AccuracyRecord,
    right_above: Array,
    right: Array,
    above: AccuracyRecord,
    limits: Limits,
    classes: tuple[str, ...],
) -> AccuracyRecord:
    lost, won = int(np.sum(right_above & ~right)), int(np.sum(~right_above & right))
    fall, p_value = (above.top1 or 0.0) - (rung.top1 or 0.0), mcnemar(lost, won)
    fell = fall > limits.top1_fall + ROUNDING and p_value < _CHANCE
    blind = (above.low or 0.0) <= 1 / max(2, len(classes))
    others = any(item.departs for item in rung.outputs if blind or item.name != rung.output)
    return replace(rung, p_value=p_value, departs=fell or others)


@contextmanager
def _named(form: str, output: str) -> Iterator[None]:
    """Add form and output to an error."""
    try:
        yield
    except MeasureError as error:
        raise MeasureError(error.message, where=f"{form}, output '{output}'", hint=error.hint) from None
