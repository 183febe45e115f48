"""``calibrator = "best"``: chosen by what the network's outputs keep, told, and kept with the ranges."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from repo_builder.core.recipe import InputQuantizer, LayerRule, QuantizeSpec, WeightQuantizer
from repo_builder.quantize import choosing, plan, store, table
from repo_builder.quantize.calibrate import calibrate
from repo_builder.quantize.judge import Judge, parts
from repo_builder.quantize.layers import find_layers
from repo_builder.quantize.placement import place, profile
from repo_builder.quantize.prepare import prepare

BEST = LayerRule(
    precision="int8",
    input=InputQuantizer(calibrator="best"),
    weight=WeightQuantizer(calibrator="best", per_channel=False),
)


def with_calibrator(name: str, percentile: float | None) -> LayerRule:
    return LayerRule(
        precision="int8",
        input=InputQuantizer(calibrator=name, percentile=percentile),
        weight=WeightQuantizer(calibrator=name, percentile=percentile, per_channel=False),
    )


@pytest.fixture
def outliers() -> np.ndarray:
    """Images of which a few values are far out."""
    draw = np.random.default_rng(0)
    values = draw.standard_normal((40, 3, 8, 8)).astype(np.float32)
    values[draw.random(values.shape) < 0.0005] *= 60
    return values


def made(model: onnx.ModelProto, samples: np.ndarray, rule: LayerRule, known=None, target: str = "onnxruntime-cpu"):
    spec = QuantizeSpec(batch_size=16, layers=(rule,))
    ready = prepare(model)
    plans = plan(list(find_layers(ready)), spec)
    ranges, seen, ran = calibrate(ready, plans, spec, {"x": samples}, known, target=target)
    return ready, plans, ranges, seen, ran


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "tensorrt"])
def test_it_keeps_at_least_what_the_best_calibrator_for_all_keeps(small, outliers, target) -> None:
    ready, plans, ranges, seen, _ = made(small, outliers, BEST, target=target)
    judge = Judge(ready, parts(ready, {"x": outliers})[1], batch_size=16)
    kept = judge.keeps(place(ready, plans, ranges, profile(target)).model)
    for name, percentile in choosing.CANDIDATES:
        _, others, found, _, _ = made(small, outliers, with_calibrator(name, percentile), target=target)
        assert kept >= judge.keeps(place(ready, others, found, profile(target)).model) - 1e-6, name
    assert seen.record is not None
    assert seen.record.after_db == pytest.approx(kept, abs=1e-3)
    assert seen.record.samples == 10
    assert kept > seen.record.before_db + 1  # max, which the outliers stretch
    assert seen.record.did.count(" looks (one for all: max ") == 1


def test_the_table_tells_which_calibrator_won(small, outliers) -> None:
    ready, plans, ranges, _, _ = made(small, outliers, BEST)
    for row in table.records(ready, plans, ranges):
        assert row.calibrator.startswith("best: ")
        assert row.weight_calibrator.startswith("best: ")
        assert (row.percentile is not None) == (row.calibrator == "best: percentile")
    plain = table.records(*(made(small, outliers, with_calibrator("mse", None))[place_of] for place_of in (0, 1, 2)))
    assert {(row.calibrator, row.weight_calibrator) for row in plain} == {("mse", "")}


def test_a_choice_is_kept_with_the_ranges_and_made_anew_for_other_rules(small, outliers, tmp_path: Path) -> None:
    _, _, ranges, seen, ran = made(small, outliers, BEST)
    assert ran
    store.write(tmp_path / "ranges.npz", "key", seen, ranges)
    known = store.read_observed(tmp_path / "ranges.npz", "key")
    assert known == seen
    _, _, again, _, ran = made(small, outliers, BEST, known)
    assert not ran
    assert again.tensors == ranges.tensors
    for name, item in ranges.weights.items():
        np.testing.assert_array_equal(again.weights[name].amax, item.amax)
    read = store.read_ranges(tmp_path / "ranges.npz")
    assert {name: item.calibrator for name, item in read.weights.items()} == {
        name: item.calibrator for name, item in ranges.weights.items()
    }
    other = dataclasses.replace(BEST, weight=WeightQuantizer())
    *_, ran = made(small, outliers, other, known)
    assert ran


def test_looks_are_bounded_and_equal_samples_choose_the_same(small, outliers, monkeypatch) -> None:
    monkeypatch.setattr(choosing, "_LOOKS", 9)
    one, other = (made(small, outliers, BEST)[3] for _ in range(2))
    assert one == other
    assert one.record is not None
    assert ", 9 looks" in one.record.did


def test_a_tensor_of_mostly_zeros_has_no_percentile_and_takes_another(small, images) -> None:
    sparse = np.where(np.random.default_rng(0).random(images.shape) < 0.0002, images, 0).astype(np.float32)
    sparse[0] = images[0] * 0 + (np.arange(192).reshape(3, 8, 8) == 5)
    *_, ranges, _, _ = made(small, sparse, BEST)
    assert ranges.tensors["x"].amax > 0
