from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repo_builder.core.errors import MeasureError
from repo_builder.measure.judge import accuracy


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_scores_are_those_of_scikit_learn(classes: int, samples: int, seed: int) -> None:
    from sklearn import metrics  # a second of computing, in the worker that runs this alone

    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(samples, classes)).astype(np.float32)
    labels = generator.integers(0, classes, samples)
    found = accuracy.score(logits, labels)
    said = logits.argmax(axis=1)
    expected = metrics.precision_recall_fscore_support(labels, said, average="macro", zero_division=0)
    assert found.top1 == pytest.approx(metrics.accuracy_score(labels, said))
    assert (found.macro_precision, found.macro_recall, found.macro_f1) == pytest.approx(expected[:3])
    shares = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True)
    assert found.loss == pytest.approx(metrics.log_loss(labels, shares, labels=list(range(classes))), rel=1e-6)
    assert np.array_equal(found.confusion, metrics.confusion_matrix(labels, said, labels=list(range(classes))))
    assert found.correct == "".join("1" if right else "0" for right in said == labels)
    assert found.low <= found.top1 <= found.high


def test_a_hundred_thousand_classes_are_scored_without_a_table_of_their_square() -> None:
    logits = np.zeros((3, 100_000), dtype=np.float32)
    logits[(0, 1, 2), (7, 99_999, 3)] = 1
    found = accuracy.score(logits, np.array([7, 99_999, 4]))
    assert found.top1 == pytest.approx(2 / 3)
    assert found.macro_recall == pytest.approx(2 / 4)  # of 3, 4, 7 and 99,999
    assert found.confusion == ()
    assert len(found.classes) == 100_000


@pytest.mark.parametrize(
    ("classes", "count", "told"),
    [(("0", "1"), 2**31 - 1, 2**31 - 1), (("cat", "dog"), 2**31 - 1, 2), (("0", "1", "2"), 2, 3), ((), 5, 5)],
)
def test_names_are_counted_without_being_written_down(classes: tuple[str, ...], count: int, told: int) -> None:
    assert accuracy.told_apart(classes, count) == told


def test_probabilities_are_taken_as_such_in_the_loss() -> None:
    shares = np.array([[0.9, 0.1], [0.25, 0.75]])
    found = accuracy.score(shares, np.array([0, 0]))
    assert found.loss == pytest.approx(-(np.log(0.9) + np.log(0.25)) / 2)


def test_large_logits_do_not_overflow() -> None:
    found = accuracy.score(np.array([[1e4, -1e4]], dtype=np.float32), np.array([1]))
    assert found.loss == pytest.approx(2e4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_name_the_sample(value: float) -> None:
    logits = np.zeros((5, 3), dtype=np.float32)
    logits[3, 1] = value
    with pytest.raises(MeasureError, match=r"1 of 5 samples .* first of sample 3"):
        accuracy.score(logits, np.zeros(5, dtype=np.int64))
    with pytest.raises(MeasureError, match="sample 3"):
        accuracy.compare(np.zeros((5, 3)), logits)


@pytest.mark.parametrize(
    ("logits", "labels", "classes", "message"),
    [
        (np.zeros((4, 1)), np.zeros(4, int), (), "not those of a classifier"),
        (np.zeros((4, 3, 2)), np.zeros(4, int), (), "not those of a classifier"),
        (np.zeros((4, 3)), np.zeros(5, int), (), "not those of a classifier"),
        (np.zeros((0, 3)), np.zeros(0, int), (), "not those of a classifier"),
        (np.zeros((4, 3)), np.full(4, 3), (), "labels reach from 3 to 3, the model has 3"),
        (np.zeros((4, 3)), np.full(4, -1), (), "labels reach from -1"),
        (np.zeros((4, 3)), np.zeros(4, int), ("a", "b"), "3 outputs and the data set 2 classes"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    logits: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(MeasureError, match=message):
        accuracy.score(logits, labels, classes)


def test_agreement_of_classes_and_of_values() -> None:
    above = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.4], [0.2, 0.1]])
    below = above + np.array([[0, 0], [0, 0], [0, 0.2], [0, -0.05]])
    found = accuracy.compare(above, below)
    assert found.agreement == 0.75
    assert found.max_abs_diff == pytest.approx(0.2)
    assert found.mean_abs_diff == pytest.approx(0.25 / 8)
    assert accuracy.compare(above, below, tolerance=0.1).agreement == 0.75
    assert accuracy.compare(above, below, tolerance=0.01).agreement == 0.5
    with pytest.raises(MeasureError, match="cannot be compared"):
        accuracy.compare(above, below[:2])


def test_labels_of_some_classes_are_scored_among_all() -> None:
    found = accuracy.score(np.eye(4)[[0, 1, 3]], np.array([0, 1, 1]), ("0", "1"))
    assert found.top1 == pytest.approx(2 / 3)
    assert found.classes == ("0", "1", "2", "3")
    with pytest.raises(MeasureError, match="4 outputs and the data set 2 classes"):
        accuracy.score(np.eye(4)[[0, 1]], np.array([0, 1]), ("cat", "dog"))
