"""The one scorer: whatever ran the model, its outputs are scored here and nowhere else."""

from __future__ import annotations

import numpy as np

from repo_builder.core.errors import MeasureError
from repo_builder.core.tensors import Array
from repo_builder.measure.judge.agreement import check_finite, compare
from repo_builder.measure.judge.statistics import wilson
from repo_builder.results import AccuracyResult

MOST_CLASSES = 1000  # of a table of counts: its cells are the square of them, in memory and in every file

__all__ = ["MOST_CLASSES", "AccuracyResult", "check_finite", "compare", "score"]


def score(logits: Array, labels: Array, classes: tuple[str, ...] = (), *, with_loss: bool = True) -> AccuracyResult:
    """Score a classifier's outputs.

    Args:
        logits: ``(n, c)``, any float dtype. Rows that are probabilities already are taken as such in the loss.
        labels: ``(n,)`` integers in ``range(c)``.
        classes: Names of the c classes; numbers where empty. Fewer that are numbers themselves leave classes that the
            data has no sample of.
        with_loss: Whether they are all classes' own numbers, so that there is a loss.

    Raises:
        MeasureError: Shapes do not fit, a label is out of range, or an output is not finite.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise MeasureError(
            f"outputs of shape {logits.shape} with labels of shape {labels.shape} are not those of a classifier",
            hint='outputs must be (n, classes); set measure.task = "other" or measure.metric for other models',
        )
    check_finite(logits)
    count = logits.shape[1]
    names = named(classes, count)
    if len(names) != count:
        raise MeasureError(f"the model has {count} outputs and the data set {len(names)} classes")
    if labels.min() < 0 or labels.max() >= count:
        raise MeasureError(f"labels reach from {labels.min()} to {labels.max()}, the model has {count} classes")
    predicted = logits.argmax(axis=1)
    precision, recall, f1 = _macro(labels, predicted, count)
    correct = predicted == labels
    low, high = wilson(int(correct.sum()), len(labels))
    return AccuracyResult(
        samples=len(labels),
        top1=float(correct.mean()),
        low=low,
        high=high,
        macro_precision=precision,
        macro_recall=recall,
        macro_f1=f1,
        loss=_cross_entropy(logits.astype(np.float64), labels) if with_loss else None,
        confusion=_confusion(labels, predicted, count) if count <= MOST_CLASSES else (),
        classes=names,
        correct="".join("1" if item else "0" for item in correct),
    )


def named(classes: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Return the names of an output's classes; names that are the first numbers are continued to all of them."""
    return tuple(map(str, range(count))) if _are_numbers(classes, count) else classes


def told_apart(classes: tuple[str, ...], count: int) -> int:
    """Return how many names ``named`` gives, without writing down as many as a recipe may ask for."""
    return count if _are_numbers(classes, count) else len(classes)


def _are_numbers(classes: tuple[str, ...], count: int) -> bool:
    return classes == tuple(map(str, range(min(count, len(classes)))))


def _confusion(labels: Array, said: Array, count: int) -> tuple[tuple[int, ...], ...]:
    cells = np.zeros((count, count), dtype=np.int64)
    np.add.at(cells, (labels, said), 1)
    return tuple(tuple(int(cell) for cell in row) for row in cells)


def _macro(labels: Array, said: Array, count: int) -> tuple[float, float, float]:
    hits = np.bincount(labels[labels == said], minlength=count).astype(np.float64)
    predicted, actual = np.bincount(said, minlength=count), np.bincount(labels, minlength=count)
    seen = (predicted + actual) > 0
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(actual, 1)
    f1 = 2 * hits / np.maximum(predicted + actual, 1)
    return float(precision[seen].mean()), float(recall[seen].mean()), float(f1[seen].mean())


def _cross_entropy(outputs: Array, labels: Array) -> float:
    """Return the mean cross-entropy of logits, or of probabilities where every row is a distribution."""
    rows = np.arange(len(labels))
    if (outputs >= 0).all() and np.allclose(outputs.sum(axis=1), 1, atol=1e-3):
        return float(-np.log(np.maximum(outputs[rows, labels], np.finfo(np.float64).tiny)).mean())
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, labels]).mean())
