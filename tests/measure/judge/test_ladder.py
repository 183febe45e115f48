from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from repo_builder.core.errors import MeasureError
from repo_builder.core.recipe import MeasureSpec
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.measure.judge import ladder
from repo_builder.measure.judge.limits import Limits
from repo_builder.results import Ladder

LABELS = np.arange(200) % 4
SURE = np.eye(4)[LABELS] * 5
RANDOM = np.random.default_rng(0)


def spoilt(count: int) -> np.ndarray:
    """The sure outputs, with the first ``count`` samples wrong."""
    values = SURE.copy()
    values[:count] = np.eye(4)[(LABELS[:count] + 1) % 4] * 5
    return values


def climb(
    forms: Mapping[str, object], labels: np.ndarray | None = LABELS, precision: str = "fp32", **measure: object
) -> Ladder:
    """Climb forms of one output, or of several by name."""
    whole = {form: item if isinstance(item, dict) else {"y": item} for form, item in forms.items()}
    limits = Limits.of(MeasureSpec(**measure), [precision])  # type: ignore[arg-type]
    return ladder.climb(whole, labels, scored="y", limits=limits)


def test_the_first_rung_that_departs_is_the_culprit() -> None:
    found = climb({"fp32": SURE, "onnx": SURE + 0.01, "engine": spoilt(20), "served": spoilt(20)})
    assert found.culprit == "engine"
    assert [item.departs for item in found.rungs] == [False, False, True, False]
    assert [item.top1 for item in found.rungs] == [1.0, 1.0, 0.9, 0.9]
    assert found.rungs[0].agreement is None
    assert found.rungs[1].max_abs_diff == pytest.approx(0.01)
    assert found.rungs[2].agreement == 0.9
    assert found.rungs[2].p_value == pytest.approx(2 / 2**20)
    assert found.rungs[3].max_abs_diff == 0


def test_a_rise_and_a_fall_within_the_tolerance_are_no_departure() -> None:
    found = climb({"a": spoilt(2), "b": SURE, "c": spoilt(1)})
    assert found.culprit == ""


def test_a_fall_that_chance_explains_is_no_departure() -> None:
    assert climb({"a": SURE, "b": spoilt(5)}).culprit == ""  # 2.5 points, and p = 0.06
    assert climb({"a": SURE, "b": spoilt(6)}).culprit == "b"


def test_labels_that_tell_nothing_leave_it_to_the_values() -> None:
    guessed = RANDOM.normal(size=(200, 4))
    broken = RANDOM.normal(size=(200, 4))
    found = climb({"a": guessed, "b": broken})
    assert found.culprit == "b"
    assert "signal to noise" in found.rungs[1].outputs[0].departs
    assert climb({"a": guessed, "b": guessed + 1e-4}).culprit == ""


def test_any_subset_of_rungs_works() -> None:
    alone = climb({"served": SURE})
    assert len(alone.rungs) == 1
    assert alone.rungs[0].agreement is None


def test_outputs_that_are_not_classes_can_be_held_to_a_difference() -> None:
    values = np.linspace(0, 1, 60).reshape(20, 3)
    forms = {"fp32": values, "onnx": values + 1e-4, "served": values + 0.1}
    found = climb(forms, None, output_tolerance=1e-3)
    assert found.culprit == "served"
    assert found.rungs[1].agreement == 1.0
    assert found.rungs[2].agreement == 0.0
    assert found.rungs[2].top1 is None
    assert found.tolerance == 1e-3


def noisy(values: np.ndarray, decibels: float) -> np.ndarray:
    noise = RANDOM.normal(size=values.shape)
    scale = np.sqrt(np.square(values).sum() / np.square(noise).sum()) * 10 ** (-decibels / 20)
    return (values + noise * scale).astype(values.dtype)


@pytest.mark.parametrize("shape", [(50,), (50, 1), (50, 7), (50, 3, 4, 4)])
@pytest.mark.parametrize(("precision", "good", "bad"), [("int8", 12, 8), ("fp16", 35, 20), ("fp32", 60, 35)])
def test_any_shape_is_held_to_what_its_precision_keeps(
    shape: tuple[int, ...], precision: str, good: float, bad: float
) -> None:
    values = RANDOM.normal(size=shape).astype(np.float32)
    assert climb({"a": values, "b": noisy(values, good)}, None, precision).culprit == ""
    found = climb({"a": values, "b": noisy(values, bad)}, None, precision)
    assert found.culprit == "b"
    assert found.rungs[1].outputs[0].sqnr_db == pytest.approx(bad, abs=0.01)


def test_the_limit_is_the_recipes_where_it_says_one() -> None:
    values = RANDOM.normal(size=(50, 3))
    forms = {"a": values, "b": noisy(values, 25)}
    assert climb(forms, None, "int8", output_sqnr_db=30.0).culprit == "b"
    assert climb(forms, None, "fp32", output_sqnr_db=20.0).culprit == ""


def test_a_step_that_changes_no_precision_is_held_closer() -> None:
    values = RANDOM.normal(size=(50, 3))
    off = noisy(values, 15)
    assert climb({"exported": values, "placed": off}, None, "int8").culprit == ""
    assert climb({"placed": values, "onnxruntime": off}, None, "int8").culprit == ""
    assert climb({"engine": values, "served": off}, None, "int8").culprit == "served"
    assert climb({"fp32": values, "exported": noisy(values, 35)}, None, "int8").culprit == "exported"
    assert climb({"fp32": values, "exported": noisy(values, 35)}, None, "int8", output_sqnr_db=30.0).culprit == ""


def test_an_output_that_no_longer_tells_samples_apart_departs_however_near_it_is() -> None:
    values = 100 + RANDOM.normal(size=(50,))
    constant = np.full_like(values, 100) + 1.5
    found = climb({"a": values, "b": constant}, None, "int8")
    one = found.rungs[1].outputs[0]
    assert one.sqnr_db is not None
    assert one.sqnr_db > 30
    assert found.culprit == "b"
    assert "varies between samples" in one.departs
    assert climb({"a": np.full((50, 2), 3.0), "b": np.full((50, 2), 3.01)}, None, "int8").culprit == ""


def test_every_output_is_compared_and_the_worst_is_named() -> None:
    first, second = RANDOM.normal(size=(200, 4)), RANDOM.normal(size=(200, 2))
    forms = {
        "fp32": {"y": SURE, "first": first, "second": second},
        "onnx": {"y": SURE, "first": noisy(first, 30), "second": noisy(second, 3)},
        "served": {"y": SURE, "first": first, "second": second},
    }
    found = climb(forms, LABELS, "int8")
    assert found.culprit == "onnx"
    assert found.rungs[1].worst == "second"
    assert [bool(item.departs) for item in found.rungs[1].outputs] == [False, False, True]
    assert found.rungs[1].top1 == 1
    assert found.rungs[1].output == "y"


@pytest.mark.parametrize("kind", [bool, np.int64, str, object, np.uint8])
def test_values_that_are_no_floating_point_numbers_are_held_to_equality(kind: type) -> None:
    values = RANDOM.integers(0, 2, (100, 6))
    few, many = values.copy(), values.copy()
    few[:10, 0] ^= 1
    many[:, :3] ^= 1
    typed = [
        item.astype(str).astype(kind) if kind in (str, object) else item.astype(kind) for item in (values, few, many)
    ]
    assert climb({"a": typed[0], "b": typed[1]}, None, "int8").culprit == ""
    found = climb({"a": typed[0], "b": typed[2]}, None, "int8")
    assert found.culprit == "b"
    assert found.rungs[1].outputs[0].agreement == 0.5


def test_whole_numbers_may_be_close_instead_of_equal() -> None:
    image = RANDOM.integers(0, 256, (20, 8, 8)).astype(np.uint8)
    near = np.clip(image.astype(int) + 1, 0, 255).astype(np.uint8)
    assert climb({"a": image, "b": near}, None, "int8").culprit == ""


def test_a_form_that_is_not_finite_is_named() -> None:
    bad = SURE.copy()
    bad[7, 0] = np.nan
    with pytest.raises(MeasureError, match=r"served, output 'other': .*sample 7"):
        climb({"fp32": {"y": SURE, "other": SURE}, "served": {"y": SURE, "other": bad}})


def test_an_output_that_is_not_there_is_told() -> None:
    with pytest.raises(MeasureError, match=r"fp32: there is no output 'y'; there are z"):
        climb({"fp32": {"z": SURE}})


def test_the_scored_output_is_the_one_of_the_classes() -> None:
    outputs = [
        TensorSpec(name="embedding", dtype=DType.FP32, shape=(64,)),
        TensorSpec(name="logits", dtype=DType.FP32, shape=(4,)),
    ]
    assert ladder.scored_output(outputs, None, 4) == "logits"
    assert ladder.scored_output(outputs, None, 0) == "embedding"
    assert ladder.scored_output(outputs, "embedding", 4) == "embedding"
