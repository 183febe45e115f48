"""Linear layers whose input range is found in every run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from repo_builder.compile.onnxruntime.became import became
from repo_builder.core.errors import QuantizeError, RecipeError
from repo_builder.core.recipe import InputQuantizer, LayerRule, QuantizeSpec, WeightQuantizer
from repo_builder.export import qdq
from repo_builder.quantize.calibrate import calibrate
from repo_builder.quantize.placement import PROFILES, Placed, place

N = helper.make_node
CPU = PROFILES["onnxruntime-cpu"]
DYNAMIC = LayerRule(type="Linear", precision="int8", input=InputQuantizer(calibrator="dynamic"))


def placed(kit: Any, model: onnx.ModelProto, feeds: dict[str, Any], *rules: LayerRule) -> Placed:
    spec = QuantizeSpec(layers=rules or (DYNAMIC,))
    plans = kit.plans_of(model, *spec.layers)
    ranges, _, _ = calibrate(model, plans, spec, feeds, None)
    return place(model, plans, ranges, CPU)


def network(kit: Any) -> onnx.ModelProto:
    """A MatMul with a bias behind it, and a Gemm of every setting that its product bears."""
    nodes = [
        N("MatMul", ["x", "w0"], ["a"], name="first"),
        N("Add", ["a", "b0"], ["b"], name="add"),
        N("Relu", ["b"], ["c"], name="relu"),
        N("Gemm", ["c", "w1", "b1"], ["y"], name="second", transB=1, alpha=0.5, beta=2.0),
    ]
    stored = {"w0": kit.noise(16, 8, seed=1), "b0": kit.noise(8, seed=2)}
    stored |= {"w1": kit.noise(4, 8, seed=3), "b1": kit.noise(4, seed=4)}
    return kit.prepare(kit.model(nodes, stored, {"x": ["n", 16]}))


def test_what_is_computed_is_what_was_asked_for_within_eight_bits(kit: Any, tmp_path: Path) -> None:
    model, feeds = network(kit), {"x": kit.noise(8, 16)}
    found = placed(kit, model, feeds)
    assert [(row.name, row.placed, row.reason) for row in found.layers] == [
        ("first", "int8", ""),
        ("second", "int8", ""),
    ]
    onnx.checker.check_model(found.model, full_check=True)
    assert qdq.layer_precisions(found.model) == {"first": "int8", "second": "int8"}
    exact = kit.run(model, feeds)[0]
    for optimize in (False, True):
        assert kit.decibels(exact, kit.run(found.model, feeds, optimize=optimize)[0]) > 35
    wide = {"x": 1000 * feeds["x"]}  # a range that calibration never saw
    assert kit.decibels(kit.run(model, wide)[0], kit.run(found.model, wide)[0]) > 35
    path = tmp_path / "model.onnx"
    onnx.save(found.model, path)
    assert {row.name: row.got for row in became(path, ["first", "second"])} == {"first": "int8", "second": "int8"}


def test_numbers_are_those_of_quantize_dynamic(kit: Any, tmp_path: Path) -> None:
    """One MatMul: its codes, scales and products are the same, channel by channel."""
    nodes = [N("MatMul", ["x", "w"], ["y"], name="only")]
    model = kit.prepare(kit.model(nodes, {"w": kit.noise(16, 8, seed=1)}, {"x": ["n", 16]}))
    feeds = {"x": kit.noise(8, 16)}
    onnx.save(model, tmp_path / "fp32.onnx")
    settings = {"per_channel": True, "weight_type": QuantType.QInt8, "extra_options": {"WeightSymmetric": True}}
    quantize_dynamic(tmp_path / "fp32.onnx", tmp_path / "theirs.onnx", **settings)
    theirs = kit.run(onnx.load(tmp_path / "theirs.onnx"), feeds)[0]
    np.testing.assert_allclose(kit.run(placed(kit, model, feeds).model, feeds)[0], theirs, rtol=1e-5, atol=1e-5)


def test_layers_that_read_one_tensor_share_its_codes_and_others_stay_static(kit: Any) -> None:
    nodes = [
        N("MatMul", ["x", "w0"], ["q"], name="query"),
        N("MatMul", ["x", "w1"], ["k"], name="key"),
        N("Add", ["q", "k"], ["s"], name="sum"),
        N("MatMul", ["s", "w2"], ["y"], name="out"),
    ]
    stored = {f"w{place}": kit.noise(8, 8, seed=place) for place in range(3)}
    model, feeds = kit.prepare(kit.model(nodes, stored, {"x": ["n", 8]})), {"x": kit.noise(8, 8)}
    found = placed(kit, model, feeds, DYNAMIC, LayerRule(name="out", precision="int8"))
    kinds = [node.op_type for node in found.model.graph.node]
    assert kinds.count("DynamicQuantizeLinear") == 1
    assert kinds.count("MatMulInteger") == 2
    assert {row.placed for row in found.layers} == {"int8"}
    assert set(found.tensors) == {"s"}
    assert kit.decibels(kit.run(model, feeds)[0], kit.run(found.model, feeds)[0]) > 30


def test_what_cannot_be_dynamic_says_why(kit: Any) -> None:
    nodes = [N("Conv", ["x", "w"], ["y"], name="conv")]
    model = kit.prepare(kit.model(nodes, {"w": kit.noise(4, 4, 1, 1)}, {"x": ["n", 4, 4, 4]}))
    rule = LayerRule(name="conv", precision="int8", input=InputQuantizer(calibrator="dynamic"))
    found = placed(kit, model, {"x": kit.noise(2, 4, 4, 4)}, rule)
    assert (found.layers[0].placed, found.layers[0].reason) == ("fp32", "dynamic ranges are for linear layers")
    model, feeds = network(kit), {"x": kit.noise(8, 16)}
    plans = kit.plans_of(model, DYNAMIC)
    ranges, _, _ = calibrate(model, plans, QuantizeSpec(layers=(DYNAMIC,)), feeds, None)
    with pytest.raises(QuantizeError, match="tensorrt takes no ranges that are found in every run") as refused:
        place(model, plans, ranges, PROFILES["tensorrt"])
    assert refused.value.where == "first"
    with pytest.raises((RecipeError, TypeError, ValueError)):
        WeightQuantizer(calibrator="dynamic", percentile=99.0)  # type: ignore[arg-type]
