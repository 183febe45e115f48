"""Ranges: what every tensor holds that a target may quantize."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from repo_builder.core.errors import QuantizeError, RecipeError
from repo_builder.core.recipe import InputQuantizer, LayerRule, QuantizeSpec, WeightQuantizer
from repo_builder.quantize import BACKENDS, plan, store
from repo_builder.quantize import calibrate as calibrate_module
from repo_builder.quantize.calibrate import calibrate
from repo_builder.quantize.calibrators import Calibrator
from repo_builder.quantize.layers import find_layers
from repo_builder.quantize.observe import open_session, run, stream
from repo_builder.quantize.prepare import prepare

CALIBRATORS = [("max", None), ("percentile", 99.0), ("mse", None), ("entropy", None)]


def rule(calibrator: str, percentile: float | None = None, **more) -> LayerRule:
    return LayerRule(
        precision="int8",
        input=InputQuantizer(calibrator=calibrator, percentile=percentile),
        weight=WeightQuantizer(calibrator=calibrator, percentile=percentile),
        **more,
    )


@pytest.mark.parametrize(("calibrator", "percentile"), CALIBRATORS)
def test_a_range_is_its_calibrator_s_over_all_samples(small, images, lower, calibrator, percentile) -> None:
    made = lower(small, images, rule(calibrator, percentile), batch_size=7)
    tensors = ["x", "r0", "f"]
    values = run(open_session(made.ready, tensors), tensors, {"x": images})
    for name in tensors[:2]:
        found = made.ranges.tensors[name]
        finder = Calibrator(calibrator, percentile)
        finder.observe(values[name])
        # the graph's sums may differ in their last bits between batches of other sizes
        assert found.amax == pytest.approx(float(finder.amax()[0]), rel=1e-5)
        assert (found.low, found.high) == pytest.approx((values[name].min(), values[name].max()), rel=1e-5)
    weight = next(item for item in made.ready.graph.initializer if item.name == "w1")
    finder = Calibrator(calibrator, percentile, channels=8)
    from onnx import numpy_helper

    finder.observe(numpy_helper.to_array(weight).reshape(8, -1))
    np.testing.assert_array_equal(made.ranges.weights["branch"].amax, finder.amax())


@pytest.mark.parametrize(("calibrator", "percentile"), CALIBRATORS)
def test_all_back_ends_agree_to_the_bit(small, images, lower, calibrator, percentile) -> None:
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    pytest.importorskip("pytorch_quantization", reason="pytorch-quantization is not installed")
    per_tensor = dataclasses.replace(rule(calibrator, percentile), name="head")
    per_tensor = dataclasses.replace(per_tensor, weight=dataclasses.replace(per_tensor.weight, per_channel=False))
    rules = (rule(calibrator, percentile), LayerRule(type="Add", precision="int8"), per_tensor)
    one, *others = (lower(small, images, *rules, backend=name).ranges for name in BACKENDS)
    assert len(one.tensors) > 3
    for other in others:
        assert other.tensors == one.tensors
        assert list(other.weights) == list(one.weights)
        for name, found in one.weights.items():
            np.testing.assert_array_equal(found.amax, other.weights[name].amax)


def test_an_unknown_back_end_is_refused(small, images, lower) -> None:
    with pytest.raises(RecipeError, match="did you mean 'modelopt'"):
        lower(small, images, backend="modelop")


@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 40), budget=st.integers(1, 60_000))
def test_every_tensor_comes_with_every_sample_once_within_the_budget(size: int, budget: int) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 9)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="a"),
        helper.make_node("Relu", ["h"], ["r"], name="b"),
        helper.make_node("ReduceSum", ["r"], ["y"], name="c", keepdims=0),
    ]
    from tests.quantize.conftest import _graph

    model = _graph(nodes, {"w": weight}, ["n", 6])
    x = np.random.default_rng(1).integers(-8, 8, (40, 6)).astype(np.float32)
    seen: dict[str, list[np.ndarray]] = {"x": [], "h": [], "r": []}
    for part in stream(model, list(seen), {"x": x}, batch_size=size, budget_bytes=budget):
        held = sum(value.nbytes for value in part.values())
        assert held <= budget or all(len(value) == 1 for value in part.values())
        assert all(len(value) <= size for value in part.values())
        for name, value in part.items():
            seen[name].append(value)
    np.testing.assert_array_equal(np.concatenate(seen["x"]), x)
    np.testing.assert_allclose(np.concatenate(seen["h"]), x @ weight, rtol=1e-5, atol=1e-5)
    assert np.concatenate(seen["r"]).shape == (40, 9)


@pytest.mark.parametrize("fixed", [1, 5])
def test_a_batch_that_is_fixed_in_the_model_is_kept(graph_of, lower, matrix, rows, fixed: int) -> None:
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], {"w": matrix}, [fixed, 6])
    whole = rows[: len(rows) // fixed * fixed]
    assert lower(model, rows).rows[0].input_amax == np.abs(whole).max()
    with pytest.raises(QuantizeError, match="takes batches of 5, and there are 3 calibration samples"):
        lower(graph_of(model.graph.node, {"w": matrix}, [5, 6]), rows[:3])


def test_a_percentile_survives_outliers(graph_of, lower) -> None:
    x = np.random.default_rng(0).standard_normal((1024, 16)).astype(np.float32)
    x[::40, 3] = 5e5
    weight = np.random.default_rng(1).standard_normal((16, 8)).astype(np.float32)
    model = graph_of([helper.make_node("Gemm", ["x", "w"], ["y"], name="fc")], {"w": weight}, ["n", 16])
    found = lower(model, x, rule("percentile", 99.0)).ranges.tensors["x"].amax
    exact = float(np.percentile(np.abs(x), 99))
    assert exact <= found < 1.02 * exact


def test_what_does_not_end_finite_names_the_layer_that_reads_it(small, images, lower) -> None:
    images[3, 0, 0, 0] = np.nan
    with pytest.raises(QuantizeError, match="stem: its input holds NaN or infinity"):
        lower(small, images)


def test_a_mask_of_infinity_elsewhere_is_no_obstacle(graph_of, lower, run, matrix, rows) -> None:
    mask = np.float32([0, -np.inf, 0, 0])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
        helper.make_node("Add", ["h", "m"], ["a"], name="mask"),
        helper.make_node("Softmax", ["a"], ["y"], name="soft"),
    ]
    for target in ("onnxruntime-cpu", "tensorrt"):
        model = graph_of(nodes, {"w": matrix, "m": mask}, ["n", 6])
        made = lower(model, rows, target=target)
        assert made.rows[0].precision == "int8"
        np.testing.assert_allclose(run(made.placed.model, rows), run(model, rows), atol=0.1)


def test_an_output_whose_channels_differ_by_orders_stays_float(graph_of, lower, run, capsys) -> None:
    sizes = np.float32(10) ** np.arange(-3, 3).reshape(6, 1, 1, 1)
    weight = (np.random.default_rng(0).standard_normal((6, 1, 3, 3)) * sizes).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="dw", group=6, pads=[1] * 4)
    model = graph_of([node], {"w": weight}, ["n", 6, 8, 8])
    x = np.random.default_rng(1).standard_normal((32, 6, 8, 8)).astype(np.float32)
    want, got = run(model, x), run(lower(model, x, target="onnxruntime-cpu").placed.model, x)
    noise = [((want[:, i] - got[:, i]) ** 2).mean() / (want[:, i] ** 2).mean() for i in range(6)]
    assert max(noise) < 10**-2.5
    assert "its channels differ in size" in capsys.readouterr().err


# --- kept from one build to the next --------------------------------------------------------------------------------


def test_a_changed_precision_finds_its_ranges_in_the_file(small, images, tmp_path: Path, monkeypatch) -> None:
    ready, path = prepare(small), tmp_path / "ranges.npz"

    def find(known, *rules: LayerRule):
        spec = QuantizeSpec(layers=rules)
        return calibrate(ready, plan(list(find_layers(ready)), spec), spec, {"x": images}, known)

    half = LayerRule(name="head", precision="fp16")
    ranges, seen, ran = find(None, rule("mse"), half)
    assert ran
    store.write(path, "key", seen, ranges)
    again = store.read_ranges(path)
    assert again.tensors == ranges.tensors
    np.testing.assert_array_equal(again.weights["stem"].amax, ranges.weights["stem"].amax)

    monkeypatch.setattr(calibrate_module, "stream", lambda *_, **__: pytest.fail("the graph ran"))
    assert store.read_observed(path, "another key") is None
    known = store.read_observed(path, "key")
    found, _, ran = find(
        known, rule("mse"), LayerRule(name="head", precision="int8"), LayerRule(type="Add", precision="int8")
    )
    assert not ran
    assert set(found.tensors) >= set(ranges.tensors)
    with pytest.raises(pytest.fail.Exception, match="the graph ran"):
        find(known, rule("entropy"))


def test_a_damaged_file_is_one_sentence_and_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "ranges.npz"
    assert store.read_observed(path, "key") is None
    path.write_bytes(b"PK\x03\x04 and nothing more")
    assert store.read_observed(path, "key") is None
    with pytest.raises(QuantizeError, match=r"ranges\.npz: cannot be read"):
        store.read_ranges(path)


def test_data_that_does_not_fit(small, images, lower) -> None:
    with pytest.raises(QuantizeError, match="the calibration data has no input 'x'"):
        lower(small, images, name="image")
    with pytest.raises(QuantizeError, match="the model does not run on the calibration data"):
        lower(small, images[:, :2])
    with pytest.raises(QuantizeError, match="there is no calibration sample"):
        lower(small, images[:0])
