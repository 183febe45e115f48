"""Linear layers whose weights alone are 4-bit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from repo_builder.core.errors import QuantizeError, RecipeError
from repo_builder.core.graphs import opset
from repo_builder.core.recipe import InputQuantizer, LayerRule, QuantizeSpec, WeightQuantizer
from repo_builder.export import qdq
from repo_builder.quantize import store
from repo_builder.quantize.calibrate import calibrate
from repo_builder.quantize.placement import PROFILES, Placed, blocks, place

N = helper.make_node
INT4 = LayerRule(type="Linear", precision="int4")
GEMMS = {
    "plain": ({}, (24, 6), (6,)),
    "turned": ({"transB": 1}, (6, 24), (6,)),
    "scaled": ({"alpha": 0.5, "beta": 2.0, "transB": 1}, (6, 24), (6,)),
    "one bias": ({}, (24, 6), (1,)),
    "no bias": ({"transB": 1}, (6, 24), None),
    "a bias a sample": ({"beta": 0.5}, (24, 6), (5, 6)),
}


def placed(kit: Any, model: onnx.ModelProto, feeds: dict[str, Any], *rules: LayerRule) -> Placed:
    spec = QuantizeSpec(layers=rules or (INT4,))
    plans = kit.plans_of(model, *spec.layers)
    ranges, _, _ = calibrate(model, plans, spec, feeds, None)
    return place(model, plans, ranges, PROFILES["onnxruntime-cpu"])


@pytest.mark.parametrize(("settings", "shape", "bias"), GEMMS.values(), ids=list(GEMMS))
def test_a_gemm_of_any_settings_keeps_its_meaning(
    kit: Any, settings: dict[str, Any], shape: tuple[int, ...], bias: tuple[int, ...] | None
) -> None:
    stored = {"w": kit.noise(*shape, seed=1), **({"b": kit.noise(*bias, seed=2)} if bias else {})}
    nodes = [N("Gemm", ["x", *stored], ["y"], name="fc", **settings)]
    model, feeds = kit.prepare(kit.model(nodes, stored, {"x": [5, 24]})), {"x": kit.noise(5, 24)}
    found = placed(kit, model, feeds)
    onnx.checker.check_model(found.model, full_check=True)
    assert opset(found.model) == 21
    assert qdq.layer_precisions(found.model) == {"fc": "int4"}
    turned, alpha = settings.get("transB"), np.float32(settings.get("alpha", 1))
    weight = (stored["w"].T if turned else stored["w"]) * alpha
    how = blocks.find(weight)
    exact = onnx.ModelProto()
    exact.CopyFrom(model)
    rounded = blocks.values(blocks.codes(weight, how), how) / alpha
    exact.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.ascontiguousarray(rounded.T if turned else rounded), "w")
    )
    np.testing.assert_allclose(kit.run(found.model, feeds)[0], kit.run(exact, feeds)[0], rtol=1e-5, atol=1e-5)


def test_weights_of_both_kinds_and_float_stand_side_by_side(kit: Any) -> None:
    """int8 from layer to layer, int4 behind it, a tied weight and a product in a branch left as they are."""
    nodes = [
        N("MatMul", ["x", "w0"], ["a"], name="eight"),
        N("Relu", ["a"], ["b"], name="relu"),
        N("MatMul", ["b", "w1"], ["c"], name="four"),
        N("MatMul", ["c", "w1"], ["d"], name="tied"),
        N("MatMul", ["d", "w2"], ["y"], name="plain"),
    ]
    stored = {"w0": kit.noise(40, 40, seed=1), "w1": kit.noise(40, 40, seed=2), "w2": kit.noise(40, 3, seed=3)}
    model, feeds = kit.prepare(kit.model(nodes, stored, {"x": ["n", 40]})), {"x": kit.noise(16, 40)}
    rules = [
        LayerRule(name="eight", precision="int8"),
        *(LayerRule(name=n, precision="int4") for n in ("four", "tied")),
    ]
    found = placed(kit, model, feeds, *rules)
    assert [(row.name, row.placed) for row in found.layers] == [
        ("eight", "int8"), ("four", "int4"), ("tied", "int4"), ("plain", "fp32"),
    ]  # fmt: skip
    assert qdq.layer_precisions(found.model) == {"eight": "int8", "four": "int4", "tied": "int4", "plain": "fp32"}
    kinds = [item.data_type for item in found.model.graph.initializer]
    assert kinds.count(onnx.TensorProto.UINT4) == 2, "codes and zero points of the tied weight are stored once"
    assert "w1" not in {item.name for item in found.model.graph.initializer}
    assert 12 < kit.decibels(kit.run(model, feeds)[0], kit.run(found.model, feeds)[0]) < 40
    again = placed(kit, model, feeds, *rules)
    assert again.model.SerializeToString(deterministic=True) == found.model.SerializeToString(deterministic=True)


def test_what_cannot_be_is_named_with_its_reason(kit: Any) -> None:
    nodes = [
        N("Conv", ["i", "k"], ["c"], name="conv"),
        N("Flatten", ["c"], ["f"], name="flat"),
        N("Gemm", ["t", "w"], ["g"], name="turned", transA=1),
        N("MatMul", ["f", "t"], ["y"], name="attention"),
    ]
    stored = {"k": kit.noise(4, 1, 3, 3), "w": kit.noise(16, 5)}
    shapes = {"i": [2, 1, 4, 4], "t": [16, 3]}
    model = kit.prepare(kit.model(nodes, stored, shapes, ("y", "g")))
    feeds = {"i": kit.noise(2, 1, 4, 4), "t": kit.noise(16, 3)}
    rules = [LayerRule(precision="int4"), LayerRule(name="attention", precision="int4")]
    found = placed(kit, model, feeds, *rules)
    told = {row.name: (row.asked, row.placed, row.reason) for row in found.layers}
    assert told["conv"] == ("int4", "fp32", "int4 weights are for linear layers (MatMul and Gemm), and this is Conv")
    assert told["turned"] == ("int4", "fp32", "its input is transposed")
    assert told["attention"] == ("int4", "fp32", "its weight is an activation: a product of two has none to store")
    assert opset(found.model) == 17, "nothing asks for a newer one"


def test_a_weight_that_is_not_finite_is_refused(kit: Any) -> None:
    weight = kit.noise(4, 3)
    weight[1, 1] = np.inf
    model = kit.prepare(kit.model([N("MatMul", ["x", "w"], ["y"], name="fc")], {"w": weight}, {"x": ["n", 4]}))
    with pytest.raises(QuantizeError, match=r"fc: its weight is not finite"):
        placed(kit, model, {"x": kit.noise(2, 4)})


def test_another_target_says_that_it_has_none(kit: Any) -> None:
    model = kit.prepare(kit.model([N("MatMul", ["x", "w"], ["y"], name="fc")], {"w": kit.noise(4, 3)}, {"x": ["n", 4]}))
    plans = kit.plans_of(model, INT4)
    ranges, _, _ = calibrate(model, plans, QuantizeSpec(layers=(INT4,)), {"x": kit.noise(2, 4)}, None)
    with pytest.raises(QuantizeError, match=r"^fc: TensorRT takes int4 weights from version 10 on"):
        place(model, plans, ranges, PROFILES["tensorrt"])


def test_blocks_are_read_back_as_they_were_written(kit: Any, tmp_path: Path) -> None:
    model = kit.prepare(
        kit.model([N("MatMul", ["x", "w"], ["y"], name="fc")], {"w": kit.noise(40, 3)}, {"x": ["n", 40]})
    )
    for symmetric in (True, False):
        rule = LayerRule(precision="int4", weight=WeightQuantizer(block=16, symmetric=symmetric, calibrator="mse"))
        spec = QuantizeSpec(layers=(rule,))
        ranges, seen, ran = calibrate(model, kit.plans_of(model, rule), spec, {"x": kit.noise(2, 40)}, None)
        assert not ran, "no sample has a say in it"
        store.write(tmp_path / "ranges.npz", "key", seen, ranges)
        found, written = store.read_ranges(tmp_path / "ranges.npz").blocks["fc"], ranges.blocks["fc"]
        assert (found.block, found.inputs, found.scale.tobytes()) == (16, 40, written.scale.tobytes())
        assert (found.zero is None) == symmetric
        assert found.zero is None or (written.zero is not None and found.zero.tobytes() == written.zero.tobytes())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"input": InputQuantizer(calibrator="mse")}, "the layer's input stays in floating point"),
        ({"weight": WeightQuantizer(calibrator="entropy")}, "the entropy calibrator is not for"),
        ({"weight": WeightQuantizer(calibrator="percentile", percentile=99.0)}, "the percentile calibrator is not for"),
        ({"weight": WeightQuantizer(per_channel=False)}, "a range for each block"),
        (
            {"weight": WeightQuantizer(block=64), "precision": "int8"},
            "it is of int4 weights, and the rule asks for int8",
        ),
        ({"weight": WeightQuantizer(symmetric=True), "precision": "fp16"}, "and the rule asks for fp16"),
    ],
)
def test_settings_that_a_precision_has_no_use_for_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        LayerRule(**{"precision": "int4", **settings})


def test_a_rule_of_another_precision_leaves_blocks_behind() -> None:
    rule = LayerRule(name="fc", precision="int4", weight=WeightQuantizer(block=64, symmetric=True))
    assert rule.of("fp32").weight == WeightQuantizer()
    assert rule.of("int4") == rule
