"""Bias correction: means come back, where a layer is int8 and only there."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from repo_builder.core.recipe import InputQuantizer, LayerRule, RepairSpec, WeightQuantizer
from repo_builder.quantize.leaving import place_without
from repo_builder.quantize.placement import profile
from repo_builder.quantize.repair import bias

SPEC = RepairSpec(correct_bias=True, keep="all")
# weights of a third of their range, which shifts every mean
COARSE = LayerRule(precision="int8", weight=WeightQuantizer(calibrator="percentile", percentile=70.0))


def shift_of_means(found, target: str, samples: np.ndarray, outputs) -> float:
    exact, made = outputs(found.ready, samples)[0], outputs(found.placed(target), samples)[0]
    return float(np.abs((made - exact).mean(axis=0)).max())


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "tensorrt"])
def test_means_of_the_outputs_come_back(mobile_net, pictures, repair_of, outputs, target) -> None:
    plain = repair_of(mobile_net(), pictures, RepairSpec(), COARSE, target=target)
    found = repair_of(mobile_net(), pictures, SPEC, COARSE, target=target)
    assert shift_of_means(found, target, pictures, outputs) < shift_of_means(plain, target, pictures, outputs) / 3
    assert found.records[0].after_db > found.records[0].before_db + 3
    assert set(found.ranges.weights) == {"stem", "depthwise", "pointwise", "head"}
    assert all(item.shift is not None for item in found.ranges.weights.values())


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "tensorrt"])
@pytest.mark.parametrize("added", ["constant", "computed", "nothing", "shared"])
def test_a_matmul_takes_its_shift_in_the_sum_behind_it_or_gets_one(graph_of, repair_of, outputs, added, target) -> None:
    draw = np.random.default_rng(0)
    stored = {"w": draw.standard_normal((8, 6)), "b": draw.standard_normal(6), "v": draw.standard_normal((6, 5))}
    node = helper.make_node
    ends = {
        "constant": [node("Add", ["a", "b"], ["s"], name="sum")],
        "shared": [node("Add", ["a", "b"], ["s"], name="sum"), node("Add", ["x8", "b"], ["z"], name="other")],
        "computed": [
            node("ReduceMean", ["x"], ["m"], axes=[1], name="mean"),
            node("Add", ["a", "m"], ["s"], name="sum"),
        ],
        "nothing": [node("Identity", ["a"], ["s"], name="same")],
    }[added]
    before = [node("MatMul", ["x", "w"], ["x8"], name="zero")] if added == "shared" else []
    nodes = [
        *before,
        node("MatMul", ["x", "w"], ["a"], name="one"),
        *ends,
        node("Sigmoid", ["s"], ["g"], name="gate"),
        node("MatMul", ["g", "v"], ["y"], name="two"),
    ]
    names = ["y", "z"] if added == "shared" else ["y"]
    model = graph_of(nodes, stored, ["n", 8], outputs=names)
    samples = draw.standard_normal((64, 8)).astype(np.float32) + 2
    rules = (COARSE, LayerRule(name="zero", precision="fp32")) if before else (COARSE,)
    found = repair_of(model, samples, SPEC, *rules, target=target)
    plain = repair_of(model, samples, RepairSpec(), *rules, target=target)
    assert shift_of_means(found, target, samples, outputs) < shift_of_means(plain, target, samples, outputs) / 3
    sums = [node for node in found.placed(target).graph.node if node.op_type == "Add"]
    extra = {"constant": 1, "shared": 1, "computed": 2, "nothing": 2}[added]  # the last MatMul's
    assert len(sums) == len([item for item in nodes if item.op_type == "Add"]) + extra
    if added == "shared":
        np.testing.assert_array_equal(
            outputs(found.placed(target), samples, ["z"])[0], outputs(found.ready, samples, ["z"])[0]
        )


def test_a_layer_that_is_left_in_fp32_keeps_its_own_bias(mobile_net, pictures, repair_of) -> None:
    found = repair_of(mobile_net(), pictures, SPEC, COARSE)
    left = dict.fromkeys(("stem", "depthwise", "pointwise", "head"), "left")
    placed = place_without(found.model, found.plans, found.ranges, profile("onnxruntime-cpu"), left).model
    stored = {item.name: numpy_helper.to_array(item) for item in placed.graph.initializer}
    ready = {item.name: numpy_helper.to_array(item) for item in found.ready.graph.initializer}
    for name, value in ready.items():
        np.testing.assert_array_equal(stored[name], value)


def test_a_bias_of_an_odd_shape_is_left_alone(graph_of, repair_of) -> None:
    draw = np.random.default_rng(0)
    stored = {"w": draw.standard_normal((8, 6)), "b": draw.standard_normal((4, 1)), "v": draw.standard_normal((6, 5))}
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["r"], name="act"),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="two"),
    ]
    samples = draw.standard_normal((32, 8)).astype(np.float32)
    found = repair_of(graph_of(nodes, stored, [4, 8]), samples, SPEC, COARSE)
    assert found.ranges.weights["one"].shift is None
    assert found.ranges.weights["two"].shift is not None
    onnx.checker.check_model(found.placed(), full_check=True)


def test_errors_of_a_few_positions_move_no_other() -> None:
    draw = np.random.default_rng(0)
    errors = draw.standard_normal((5000, 4)) + np.array([0.0, 0.5, -1.0, 2.0])
    found = bias.middle(errors)
    np.testing.assert_allclose(found, errors.mean(axis=0), atol=1e-2)
    lost = errors.copy()
    lost[::12] += 300
    assert np.abs(lost.mean(axis=0) - errors.mean(axis=0)).min() > 20
    np.testing.assert_allclose(bias.middle(lost), found, atol=0.05)
    np.testing.assert_array_equal(bias.middle(np.full((3, 2), 0.25)), [0.25, 0.25])


def test_a_range_that_clips_one_token_of_a_sentence_shifts_none_of_the_others(networks, repair_of, judged) -> None:
    model, samples, others = networks["transformer"]
    clipped = LayerRule(precision="int8", input=InputQuantizer(calibrator="percentile", percentile=99.0))
    found = repair_of(model, samples, SPEC, clipped)
    assert judged(found, others) >= judged(repair_of(model, samples, RepairSpec(), clipped), others) - 0.1
