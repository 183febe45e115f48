"""Adaptive rounding: never worse than nearest for a layer, and one int8 weight for every target."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from repo_builder.core.environment import Saturation
from repo_builder.core.errors import QuantizeError
from repo_builder.core.recipe import LayerRule, RepairSpec, WeightQuantizer
from repo_builder.quantize.placement import place, profile
from repo_builder.quantize.placement.profiles import onnxruntime_cpu
from repo_builder.quantize.repair.rounding import solve

ADAPTIVE = RepairSpec(rounding="adaptive", keep="all")


def cost(codes: np.ndarray, exact: np.ndarray, products: np.ndarray) -> np.ndarray:
    """What ``solve`` lowers, damping included, a row."""
    damped = products / np.diag(products).mean() + 0.01 * np.eye(len(products))
    errors = codes - exact
    return np.einsum("ij,jk,ik->i", errors, damped, errors)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 5), size=st.integers(1, 7), spread=st.floats(0, 3))
def test_codes_are_next_to_the_weight_and_cost_no_more_than_the_nearest(seed, rows, size, spread) -> None:
    draw = np.random.default_rng(seed)
    exact = draw.uniform(-127, 127, (rows, size))
    seen = draw.standard_normal((40, size)) + spread
    products = seen.T @ seen / 40
    nearest = np.rint(exact).astype(np.int8)
    found = solve(exact, nearest, products.astype(np.float32))
    assert found.dtype == np.int8
    assert (np.abs(found - exact) <= 1 + 1e-6).all()
    assert np.abs(found.astype(int)).max() <= 127
    after, before = cost(found, exact, products), cost(nearest, exact, products)
    assert (after <= before * (1 + 1e-4) + 1e-5).all()
    every = itertools.product((0, 1), repeat=size)
    best = np.min([cost(np.floor(exact) + np.array(ups), exact, products) for ups in every], axis=0)
    assert (after >= best * (1 - 1e-4) - 1e-5).all()


def test_what_never_varies_stays_nearest() -> None:
    exact = np.array([[0.4, 0.4, 126.9, 500.0]])
    found = solve(exact, np.array([[0, 0, 127, 127]], np.int8), np.zeros((4, 4), np.float32))
    np.testing.assert_array_equal(found, [[0, 0, 127, 127]])


def stored_codes(model: onnx.ModelProto, layer: str) -> np.ndarray:
    """A layer's weight as int8, whether it is stored so or float before Q."""
    makers = {name: node for node in model.graph.node for name in node.output}
    values = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    node = makers[next(item for item in model.graph.node if item.name == layer).input[1]]
    while node.op_type != "DequantizeLinear":
        node = makers[node.input[0]]
    if node.input[0] in values:
        return values[node.input[0]]
    before = makers[node.input[0]]
    weight, scale = values[before.input[0]], values[before.input[1]]
    axis = next((item.i for item in before.attribute if item.name == "axis"), 0)
    shape = [-1 if place_of == axis and scale.ndim else 1 for place_of in range(weight.ndim)]
    return np.clip(np.rint(weight / scale.reshape(shape)), -128, 127).astype(np.int8)


@pytest.mark.parametrize(
    ("backend", "per_channel"),
    [("onnxruntime", True), ("onnxruntime", False), ("modelopt", True), ("pytorch-quantization", True)],
)
def test_every_target_gets_the_same_int8_weight(mobile_net, pictures, repair_of, per_channel, backend) -> None:
    if backend != "onnxruntime":
        pytest.importorskip(backend.replace("-", "_"), reason=f"{backend} is not installed")
    rule = LayerRule(precision="int8", weight=WeightQuantizer(per_channel=per_channel))
    found = repair_of(mobile_net(), pictures, ADAPTIVE, rule, backend=backend)
    assert found.records[0].kept
    one, other = found.placed(), found.placed("tensorrt")
    moved = 0
    for layer in ("stem", "depthwise", "pointwise", "head"):
        chosen = found.ranges.weights[layer].codes
        np.testing.assert_array_equal(stored_codes(one, layer), chosen)
        turned = chosen.T if layer == "head" else chosen  # stored (outputs, inputs) for TensorRT
        np.testing.assert_array_equal(stored_codes(other, layer), turned)
        weights = {**found.ranges.weights, layer: dataclasses.replace(found.ranges.weights[layer], codes=None)}
        ranges = dataclasses.replace(found.ranges, weights=weights)
        plain = place(found.model, found.plans, ranges, profile("onnxruntime-cpu"))
        moved += int((stored_codes(plain.model, layer) != chosen).sum())
    assert moved > 10


def test_a_cpu_of_fewer_codes_gets_the_nearest_of_the_weight_as_it_is(mobile_net, pictures, repair_of) -> None:
    few: Saturation = "7 bits"
    found = repair_of(mobile_net(), pictures, ADAPTIVE)
    plain = repair_of(mobile_net(), pictures, RepairSpec())
    made = [place(item.model, item.plans, item.ranges, onnxruntime_cpu.for_cpu(few)).model for item in (found, plain)]
    assert made[0].SerializeToString(deterministic=True) == made[1].SerializeToString(deterministic=True)


def test_the_same_samples_choose_the_same_codes(mobile_net, pictures, repair_of) -> None:
    one, other = (repair_of(mobile_net(), pictures, ADAPTIVE) for _ in range(2))
    for layer, item in one.ranges.weights.items():
        np.testing.assert_array_equal(item.codes, other.ranges.weights[layer].codes)


def test_a_gemm_of_negative_alpha_and_a_matmul_keep_their_signs(graph_of, repair_of) -> None:
    draw = np.random.default_rng(0)
    stored = {"w": draw.standard_normal((8, 12)), "b": draw.standard_normal(12), "v": draw.standard_normal((12, 5))}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], name="one", alpha=-0.5, beta=3.0),
        helper.make_node("Relu", ["a"], ["r"], name="act"),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="two"),
    ]
    samples = draw.standard_normal((48, 8)).astype(np.float32) + 1
    found = repair_of(graph_of(nodes, stored, ["n", 8]), samples, ADAPTIVE)
    (record,) = found.records
    assert record.after_db > record.before_db - 1
    assert record.after_db > 25


def test_codes_of_another_weight_are_refused(mobile_net, pictures, repair_of) -> None:
    found = repair_of(mobile_net(), pictures, ADAPTIVE)
    wrong = {**found.ranges.weights, "stem": found.ranges.weights["head"]}
    with pytest.raises(QuantizeError, match="stem"):
        place(found.model, found.plans, dataclasses.replace(found.ranges, weights=wrong), profile("onnxruntime-cpu"))
