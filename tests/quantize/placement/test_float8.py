"""Layers in fp8: E4M3 codes of input and weight, bit for bit, whatever stands around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core.errors import QuantizeError
from repo_builder.core.graphs import Graph, opset
from repo_builder.core.recipe import InputQuantizer, LayerRule, QuantizeSpec, WeightQuantizer
from repo_builder.export import qdq
from repo_builder.quantize.calibrate import calibrate
from repo_builder.quantize.placement import PROFILES, Placed, place
from repo_builder.quantize.ranges import Ranges, WeightRange

N = helper.make_node
FP8, INT8 = LayerRule(precision="fp8"), LayerRule(precision="int8")


def placed(
    kit: Any, model: onnx.ModelProto, feeds: dict[str, Any], *rules: LayerRule, target: str = "onnxruntime-cpu"
) -> Placed:
    spec = QuantizeSpec(layers=rules or (FP8,))
    plans = kit.plans_of(model, *spec.layers)
    ranges, _, _ = calibrate(model, plans, spec, feeds, None)
    return place(model, plans, ranges, PROFILES[target])


def network(kit: Any, *, version: int = 17) -> onnx.ModelProto:
    """A convolution, a sum, a Gemm of every setting that its product bears, and a MatMul with a bias behind it."""
    nodes = [
        N("Conv", ["x", "w0", "b0"], ["a"], name="conv", pads=[1, 1, 1, 1]),
        N("Relu", ["a"], ["r"], name="relu"),
        N("Conv", ["r", "w1"], ["c"], name="second"),
        N("Add", ["c", "r"], ["s"], name="sum"),
        N("ReduceMean", ["s"], ["m"], name="mean", axes=[2, 3], keepdims=0),
        N("Gemm", ["m", "w2", "b2"], ["g"], name="gemm", transB=1, alpha=0.5, beta=2.0),
        N("MatMul", ["g", "w3"], ["p"], name="matmul"),
        N("Add", ["p", "b3"], ["y"], name="bias"),
    ]
    stored = {"w0": kit.noise(8, 3, 3, 3, seed=1), "b0": kit.noise(8, seed=2), "w1": kit.noise(8, 8, 1, 1, seed=3)}
    stored |= {"w2": kit.noise(6, 8, seed=4), "b2": kit.noise(6, seed=5), "w3": kit.noise(6, 4, seed=6)}
    stored["b3"] = kit.noise(4, seed=7)
    made = kit.model(nodes, stored, {"x": ["n", 3, 6, 6]}, opset=version)
    made.ir_version = 10
    made.graph.node[0].metadata_props.add(key="repo_builder.type", value="Conv2d")
    return kit.prepare(made)


def rounded(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Values through E4M3, by ml_dtypes."""
    scale = np.asarray(scale, np.float32)
    codes = np.clip(np.asarray(values, np.float32) / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return codes.astype(np.float32) * scale


def input_scale(model: onnx.ModelProto, layer: str) -> Any:
    """The scale of a layer's input."""
    graph, node = Graph(model), next(item for item in model.graph.node if item.name == layer)
    return graph.value(graph.producers[node.input[0]].input[1])


@pytest.mark.parametrize("target", PROFILES)
def test_every_layer_computes_with_values_that_e4m3_holds(kit: Any, target: str) -> None:
    model, feeds = network(kit), {"x": kit.noise(4, 3, 6, 6)}
    found = placed(kit, model, feeds, target=target)
    assert {(row.name, row.asked, row.placed, row.reason) for row in found.layers} == {
        (name, "fp8", "fp8", "") for name in ("conv", "second", "gemm", "matmul")
    }
    assert qdq.layer_precisions(found.model) == dict.fromkeys(("conv", "second", "gemm", "matmul"), "fp8")
    assert (opset(model), opset(found.model)) == (17, 19)
    conv = next(node for node in found.model.graph.node if node.name == "conv")
    assert [item.key for item in conv.metadata_props] == ["repo_builder.type"]
    assert qdq.lint(found.model) == ()
    onnx.checker.check_model(found.model, full_check=True)
    exact = kit.run(model, feeds)[0]
    assert kit.decibels(exact, kit.run(found.model, feeds)[0]) > 20
    # the same by hand: every layer's input and weight through E4M3, all else in float
    byhand, graph = onnx.ModelProto(), Graph(found.model)
    byhand.CopyFrom(model)
    for node in byhand.graph.node:
        if node.name not in ("conv", "second", "gemm", "matmul"):
            continue
        copy = next(item for item in found.model.graph.node if item.name == node.name)
        scale = graph.value(graph.producers[copy.input[1]].input[1])
        weight = next(item for item in byhand.graph.initializer if item.name == node.input[1])
        value, axis = numpy_helper.to_array(weight), 1 if node.op_type == "MatMul" else 0
        assert scale is not None
        assert scale.shape == (value.shape[axis],)
        amax = np.abs(value).max(axis=tuple(place for place in range(value.ndim) if place != axis))
        np.testing.assert_array_equal(scale, (amax.astype(np.float64) / 448).astype(np.float32))
        shape = [-1 if place == axis else 1 for place in range(value.ndim)]
        weight.CopyFrom(numpy_helper.from_array(rounded(value, scale.reshape(shape)), weight.name))
    assert kit.decibels(exact, kit.run(byhand, feeds)[0]) > 20  # weights alone are rounded in it
    value = feeds["x"]
    copy = next(item for item in found.model.graph.node if item.name == "conv")
    scale = input_scale(found.model, "conv")
    np.testing.assert_array_equal(scale, np.float32(np.float64(np.abs(value).max()) / 448))
    seen = kit.run(found.model, feeds, copy.input[0], copy.input[1])
    np.testing.assert_array_equal(seen[0], rounded(value, scale))
    stored = numpy_helper.to_array(next(item for item in byhand.graph.initializer if item.name == "w0"))
    np.testing.assert_array_equal(seen[1], stored)


def test_optimizations_change_nothing_that_rounding_does_not(kit: Any) -> None:
    """ONNX Runtime has no fp8 operators to fuse, and int8 neighbours stay int8."""
    model, feeds = network(kit), {"x": kit.noise(4, 3, 6, 6)}
    mixed = placed(kit, model, feeds, INT8, LayerRule(name="second", precision="fp8"))
    assert {row.name: row.placed for row in mixed.layers}["second"] == "fp8"
    assert qdq.layer_precisions(mixed.model)["conv"] == "int8"
    for item in (mixed, placed(kit, model, feeds)):
        plain, fast = (kit.run(item.model, feeds, optimize=flag)[0] for flag in (False, True))
        assert kit.decibels(plain, fast) > 45
    bare = [N("Relu", ["x"], ["r"], name="relu"), N("Reshape", ["r", "to"], ["f"], name="flat")]
    for read, nodes in (("r", bare[:1]), ("f", bare)):  # what ONNX Runtime moves Q over is no way round the guard
        last = N("MatMul", [read, "w"], ["y"], name="matmul")
        stored = {"w": kit.noise(16, 4, seed=1), "to": np.array([-1, 16])}
        model = kit.prepare(kit.model([*nodes, last], stored, {"x": ["n", 16]}))
        found, feeds = placed(kit, model, {"x": kit.noise(8, 16)}).model, {"x": kit.noise(8, 16)}
        plain, fast = (kit.run(found, feeds, optimize=flag)[0] for flag in (False, True))
        assert kit.decibels(plain, fast) > 100


def test_the_same_arguments_give_the_same_bytes_and_the_model_is_not_changed(kit: Any) -> None:
    model, feeds = network(kit), {"x": kit.noise(4, 3, 6, 6)}
    before = model.SerializeToString(deterministic=True)
    first, again = (placed(kit, model, feeds, INT8, LayerRule(type="Linear", precision="fp8")).model for _ in range(2))
    assert first.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    assert model.SerializeToString(deterministic=True) == before


def test_layers_that_read_one_tensor_share_a_pair_with_the_widest_range(kit: Any) -> None:
    nodes = [
        N("MatMul", ["x", "w0"], ["q"], name="query"),
        N("MatMul", ["x", "w1"], ["k"], name="key"),
        N("Transpose", ["k"], ["t"], name="turn", perm=[1, 0]),
        N("MatMul", ["q", "t"], ["y"], name="product"),
    ]
    model = kit.prepare(kit.model(nodes, {f"w{i}": kit.noise(8, 8, seed=i) for i in range(2)}, {"x": [4, 8]}))
    narrow = LayerRule(name="key", precision="fp8", input=InputQuantizer(calibrator="percentile", percentile=50.0))
    feeds = {"x": kit.noise(4, 8)}
    found = placed(kit, model, feeds, FP8, LayerRule(type="MatMul", precision="fp8"), narrow)
    kinds = [node.op_type for node in found.model.graph.node]
    assert kinds.count("QuantizeLinear") == 3  # of x, and of the two that attention multiplies
    scale = input_scale(found.model, "query")
    assert scale == input_scale(found.model, "key")
    assert scale == np.float32(np.float64(np.abs(feeds["x"]).max()) / 448)
    assert {row.name: row.placed for row in found.layers} == dict.fromkeys(("query", "key", "product"), "fp8")
    assert kit.decibels(kit.run(model, feeds)[0], kit.run(found.model, feeds)[0]) > 20


@settings(max_examples=10, deadline=None)
@given(st.floats(-30, 30), st.floats(-30, 30), st.integers(0, 2**16))
def test_noise_is_three_bits_of_mantissa_whatever_the_scale(kit: Any, wide: float, tall: float, seed: int) -> None:
    """E4M3 keeps its relative error from 2**-6 of a scale on, so sizes of inputs and weights do not matter."""
    values = (kit.noise(16, 12, seed=seed) * np.float32(2.0**wide)).astype(np.float32)
    weight = (kit.noise(12, 5, seed=seed + 1) * np.float32(2.0**tall)).astype(np.float32)
    model = kit.prepare(kit.model([N("MatMul", ["x", "w"], ["y"], name="only")], {"w": weight}, {"x": ["n", 12]}))
    found = placed(kit, model, {"x": values})
    assert kit.decibels(kit.run(model, {"x": values})[0], kit.run(found.model, {"x": values})[0]) > 22


@pytest.mark.parametrize(
    ("calibrator", "backend"),
    [("max", "onnxruntime"), ("percentile", "onnxruntime"), ("mse", "onnxruntime"), ("mse", "modelopt")],
)
def test_calibrators_give_the_range_that_448_stands_for(kit: Any, calibrator: str, backend: str) -> None:
    share = 90.0 if calibrator == "percentile" else None
    rule = LayerRule(
        precision="fp8",
        input=InputQuantizer(calibrator=calibrator, percentile=share),  # type: ignore[arg-type]
        weight=WeightQuantizer(calibrator=calibrator, percentile=share),  # type: ignore[arg-type]
    )
    model, feeds = network(kit), {"x": kit.noise(16, 3, 6, 6)}
    spec = QuantizeSpec(layers=(rule,), backend=backend)
    plans = kit.plans_of(model, rule)
    ranges, _, _ = calibrate(model, plans, spec, feeds, None)
    size, seen = float(np.abs(feeds["x"]).max()), ranges.tensors["x"].amax
    assert seen == size if calibrator == "max" else seen < size
    if calibrator == "mse":  # of E4M3's steps, not of int8's
        int8, _, _ = calibrate(model, kit.plans_of(model, _as_int8(rule)), spec, feeds, None)
        other = int8.tensors["x"].amax
        assert other != seen
        assert _error(feeds["x"], seen) <= _error(feeds["x"], other)
    found = place(model, plans, ranges, PROFILES["onnxruntime-cpu"])
    assert input_scale(found.model, "conv") == np.float32(seen / 448)


def _error(values: np.ndarray, amax: float) -> float:
    return float(np.square(rounded(values, np.float32(amax / 448)) - values).sum())


def _as_int8(rule: LayerRule) -> LayerRule:
    return LayerRule(precision="int8", input=rule.input, weight=rule.weight)


def test_what_cannot_be_fp8_says_why(kit: Any) -> None:
    model, feeds = network(kit), {"x": kit.noise(2, 3, 6, 6)}
    found = placed(kit, model, feeds, FP8, LayerRule(type="Add", precision="fp8"))
    assert {row.name: row.reason for row in found.layers}["sum"] == "onnxruntime-cpu has no fp8 Add"
    nothing = {"x": np.zeros((2, 3, 6, 6), np.float32)}
    with pytest.raises(QuantizeError, match="its input is zero in every calibration sample") as refused:
        placed(kit, model, nothing)
    assert refused.value.where == "conv"
    plans = kit.plans_of(model, FP8)
    ranges, _, _ = calibrate(model, plans, QuantizeSpec(layers=(FP8,)), feeds, None)
    torn = Ranges(tensors=ranges.tensors, weights={**ranges.weights, "conv": WeightRange(amax=np.ones(3, np.float32))})
    with pytest.raises(QuantizeError, match="its weight has 8 channels and 3 ranges"):
        place(model, plans, torn, PROFILES["onnxruntime-cpu"])
    unreached = Ranges(tensors={}, weights=ranges.weights)
    assert {row.reason for row in place(model, plans, unreached, PROFILES["tensorrt"]).layers} == {
        "nothing reached it in calibration"
    }


def test_older_graphs_are_converted_and_newer_ones_are_not(kit: Any, tmp_path: Path) -> None:
    feeds = {"x": kit.noise(2, 3, 6, 6)}
    for version, expected in ((12, 19), (13, 19)):
        found = placed(kit, network(kit, version=version), feeds)
        assert opset(found.model) == expected
    nodes = [N("Conv", ["x", "w"], ["y"], name="conv")]
    model = kit.prepare(kit.model(nodes, {"w": kit.noise(4, 3, 1, 1)}, {"x": ["n", 3, 6, 6]}, opset=21))
    found = placed(kit, model, feeds)
    assert opset(found.model) == 21
    kinds = {item.data_type for item in found.model.graph.initializer}
    assert kinds == {TensorProto.FLOAT, TensorProto.FLOAT8E4M3FN}
    onnx.save(found.model, tmp_path / "model.onnx")
    assert qdq.layer_precisions(onnx.load(tmp_path / "model.onnx")) == {"conv": "fp8"}
