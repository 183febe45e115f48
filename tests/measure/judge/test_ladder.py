from __future__ import annotations

import numpy as np
import pytest

from repo_builder.core.errors import MeasureError
from repo_builder.measure.judge import ladder

LABELS = np.arange(200) % 4
SURE = np.eye(4)[LABELS] * 5


def spoilt(count: int) -> np.ndarray:
    """The sure outputs, with the first ``count`` samples wrong."""
    values = SURE.copy()
    values[:count] = np.eye(4)[(LABELS[:count] + 1) % 4] * 5
    return values


def test_the_first_rung_that_departs_is_the_culprit() -> None:
    forms = {"fp32": SURE, "onnx": SURE + 0.01, "engine": spoilt(20), "served": spoilt(20)}
    found = ladder.climb(forms, LABELS, accuracy_tolerance=0.005)
    assert found.culprit == "engine"
    assert [item.departs for item in found.rungs] == [False, False, True, False]
    assert [item.top1 for item in found.rungs] == [1.0, 1.0, 0.9, 0.9]
    assert found.rungs[0].agreement is None
    assert found.rungs[1].max_abs_diff == pytest.approx(0.01)
    assert found.rungs[2].agreement == 0.9
    assert found.rungs[2].p_value == pytest.approx(2 / 2**20)
    assert found.rungs[3].max_abs_diff == 0


def test_a_rise_and_a_fall_within_the_tolerance_are_no_departure() -> None:
    found = ladder.climb({"a": spoilt(2), "b": SURE, "c": spoilt(1)}, LABELS, accuracy_tolerance=0.005)
    assert found.culprit == ""


def test_any_subset_of_rungs_works() -> None:
    alone = ladder.climb({"served": SURE}, LABELS, accuracy_tolerance=0.005)
    assert len(alone.rungs) == 1
    assert alone.rungs[0].agreement is None


def test_outputs_that_are_not_classes_are_held_to_a_difference() -> None:
    values = np.linspace(0, 1, 60).reshape(20, 3)
    forms = {"fp32": values, "onnx": values + 1e-4, "served": values + 0.1}
    found = ladder.climb(forms, None, accuracy_tolerance=0.005, output_tolerance=1e-3)
    assert found.culprit == "served"
    assert found.rungs[1].agreement == 1.0
    assert found.rungs[2].agreement == 0.0
    assert found.rungs[2].top1 is None
    assert found.tolerance == 1e-3


def test_a_form_that_is_not_finite_is_named() -> None:
    bad = SURE.copy()
    bad[7, 0] = np.nan
    with pytest.raises(MeasureError, match=r"served: .*sample 7"):
        ladder.climb({"fp32": SURE, "served": bad}, LABELS, accuracy_tolerance=0.005)
