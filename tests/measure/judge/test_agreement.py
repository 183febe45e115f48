from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from repo_builder.core.errors import MeasureError
from repo_builder.measure.judge import agreement
from repo_builder.measure.judge.agreement import compare


def test_the_figures_are_what_their_formulas_say() -> None:
    one, two = np.array([[3.0, 4.0], [0.0, 2.0]]), np.array([[3.0, 3.0], [1.0, 2.0]])
    found = compare(one, two, name="y")
    assert found.name == "y"
    assert found.sqnr_db == pytest.approx(10 * np.log10(29 / 2))
    assert found.max_abs_diff == 1
    assert found.mean_abs_diff == 0.5
    assert found.cosine == pytest.approx(np.mean([21 / (5 * np.sqrt(18)), 4 / (2 * np.sqrt(5))]))
    assert found.relative_error == pytest.approx(np.sqrt(2 / (2 * 1.5**2 + 2 * 1**2)))


def test_one_number_a_sample_has_the_cosine_of_all() -> None:
    one, two = np.array([1.0, 2.0, -3.0]), np.array([1.0, -2.0, -3.0])
    assert compare(one, two, least_db=10).cosine == pytest.approx(6 / 14)
    assert compare(one, two, least_db=10).agreement == pytest.approx(2 / 3)


def test_zeros_have_figures_too() -> None:
    nothing, some = np.zeros((3, 2)), np.ones((3, 2))
    same = compare(nothing, nothing)
    assert (same.sqnr_db, same.cosine, same.relative_error) == (agreement.MOST_DB, 1, 0)
    found = compare(nothing, some)
    assert (found.sqnr_db, found.cosine, found.relative_error) == (-agreement.MOST_DB, 0, None)
    assert compare(some, nothing).relative_error == 1  # it is the same for every sample: over its own RMS


def test_strings_and_truth_values_have_no_noise() -> None:
    found = compare(np.array([["a"], ["b"]], dtype=object), np.array([["a"], ["c"]]))
    assert found.agreement == 0.5
    assert found.max_abs_diff is found.sqnr_db is found.cosine is found.relative_error is None
    found = compare(np.array([[True], [False]]), np.array([[True], [True]]))
    assert (found.agreement, found.max_abs_diff, found.sqnr_db) == (0.5, 1, None)


def test_whole_numbers_are_equal_or_not_beyond_what_a_float_holds() -> None:
    big = np.array([[2**62]])
    assert compare(big, big + 1).agreement == 0


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = np.random.default_rng(0).normal(size=(2, 101, 7))
    whole = compare(one, two)
    monkeypatch.setattr(agreement, "_BLOCK", 20)
    parts = compare(one, two)
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db)
    assert parts.relative_error == pytest.approx(whole.relative_error)
    assert parts.mean_abs_diff == pytest.approx(whole.mean_abs_diff)
    assert (parts.cosine, parts.max_abs_diff) == pytest.approx((whole.cosine, whole.max_abs_diff))


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(MeasureError, match="cannot be compared"):
        compare(np.zeros((2, 3)), np.zeros((2, 1, 3)))
    with pytest.raises(MeasureError, match="of sample 1"):
        compare(np.array([1.0, np.inf]), np.zeros(2))


ARRAYS = hnp.arrays(np.float32, (4, 3), elements=st.floats(-(2.0**100), 2.0**100, width=32))


@given(ARRAYS, ARRAYS)
def test_figures_are_numbers_within_their_bounds(one: np.ndarray, two: np.ndarray) -> None:
    found = compare(one, two)
    assert found.sqnr_db is not None
    assert abs(found.sqnr_db) <= agreement.MOST_DB
    assert found.cosine is not None
    assert -1 <= found.cosine <= 1
    assert found.relative_error is None or np.isfinite(found.relative_error)
    assert 0 <= found.agreement <= 1


@given(ARRAYS)
def test_a_form_is_equal_to_itself(one: np.ndarray) -> None:
    found = compare(one, one)
    assert (found.agreement, found.max_abs_diff, found.relative_error) == (1, 0, 0)
    assert found.cosine == pytest.approx(1)
    assert found.sqnr_db == agreement.MOST_DB
