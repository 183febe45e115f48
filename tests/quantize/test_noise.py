"""Signal to noise of lowered layers against a computation by hand."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from repo_builder.core.recipe import LayerRule
from repo_builder.export.precision import to_fp16_regions
from repo_builder.quantize import noise, table
from repo_builder.quantize.noise import signal_to_noise

INT8 = LayerRule(precision="int8")


def decibels(exact: np.ndarray, rounded: np.ndarray) -> float:
    exact = exact.astype(np.float64)
    return float(10 * np.log10(np.square(exact).sum() / np.square(rounded - exact).sum()))


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "tensorrt"])
def test_a_layer_s_noise_is_that_of_its_rounded_input_and_weight(graph_of, lower, rows, matrix, target: str) -> None:
    bias = np.float32([1, -2, 3, -4])
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "w", "b"], ["y"], name="fc"),
    ]
    made = lower(graph_of(nodes, {"w": matrix, "b": bias}, ["n", 6]), rows, target=target)
    codes = made.placed.tensors["r"]
    held = np.maximum(rows, 0)
    steps = np.clip(
        np.rint(held / np.float32(codes.scale)) + codes.zero_point,
        *((0, 255) if codes.dtype == "uint8" else (-128, 127)),
    )
    rounded = (steps - codes.zero_point) * np.float32(codes.scale)
    scale = made.ranges.weights["fc"].amax / np.float32(127)
    weight = np.clip(np.rint(matrix / scale), -127, 127) * scale
    want = decibels(held @ matrix + bias, rounded @ weight + bias)
    found = signal_to_noise(made.ready, made.placed.model, ["fc"], {"x": rows})
    assert found["fc"] == pytest.approx(want, abs=0.05)


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "tensorrt"])
def test_every_lowered_layer_has_a_figure_whatever_memory_there_is(small, images, lower, monkeypatch, target) -> None:
    rules = (INT8, LayerRule(type="Add", precision="int8"), LayerRule(name="head", precision="fp16"))
    made = lower(small, images, *rules, target=target)
    model = to_fp16_regions(made.placed.model, frozenset({"head"}))
    layers = ["stem", "branch", "sum", "head"]
    found = signal_to_noise(made.ready, model, layers, {"x": images})
    assert list(found) == layers
    assert all(25 < found[name] < 60 for name in layers[:3])
    assert 55 < found["head"] < 90  # eleven bits
    monkeypatch.setattr(noise, "BUDGET_BYTES", 1)
    assert signal_to_noise(made.ready, model, layers, {"x": images}) == pytest.approx(found, abs=1e-3)


def test_a_gemm_with_a_bias_of_an_odd_shape(graph_of, lower, rows, matrix) -> None:
    bias = np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="fc")
    made = lower(graph_of([node], {"w": matrix, "b": bias}, [32, 6]), rows)
    found = signal_to_noise(made.ready, made.placed.model, ["fc"], {"x": rows})
    assert 30 < found["fc"] < 60


def test_a_layer_that_loses_much_is_named(graph_of, lower, rows, matrix) -> None:
    x = rows.copy()
    x[0, 0] = 3000
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], {"w": matrix}, ["n", 6])
    made = lower(model, x, target="tensorrt")
    found = signal_to_noise(made.ready, made.placed.model, ["fc"], {"x": x[1:]})
    assert found["fc"] < 10
    rows_ = table.placed(table.records(made.ready, made.plans, made.ranges), made.placed.layers, found)
    (sentence,) = table.hard_layers(rows_)
    assert sentence.startswith("fc loses much in int8")
    assert table.hard_layers(table.placed(rows_, made.placed.layers, {"fc": 40.0})) == ()


def test_decibels_are_numbers_in_json() -> None:
    assert noise.decibels(1, 0) == 200
    assert noise.decibels(0, 1) == noise.decibels(1, float("nan")) == -200
    assert noise.decibels(100, 1) == pytest.approx(20)
