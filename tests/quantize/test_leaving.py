"""Layers that were to be int8 and are left in fp32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core.recipe import InputQuantizer, LayerRule, QuantizeSpec
from repo_builder.quantize import leaving
from repo_builder.quantize.calibrate import calibrate
from repo_builder.quantize.layers import find_layers
from repo_builder.quantize.placement import PROFILES, place
from repo_builder.quantize.prepare import prepare
from repo_builder.quantize.ranges import Ranges
from repo_builder.quantize.rules import LayerPlan, plan

CPU = PROFILES["onnxruntime-cpu"]
ONE = LayerRule(type="Conv*", precision="int8", input=InputQuantizer(calibrator="percentile", percentile=90.0))
NAMED = LayerRule(name="b", precision="int8")


def chain(*rules: LayerRule) -> tuple[onnx.ModelProto, tuple[LayerPlan, ...], Ranges]:
    """Three convolutions in a row."""
    generator = np.random.default_rng(0)
    stored = [
        numpy_helper.from_array(generator.normal(size=(4, 4, 1, 1)).astype(np.float32), name)
        for name in ("u", "v", "w")
    ]
    nodes = [
        helper.make_node("Conv", ["x", "u"], ["p"], name="a"),
        helper.make_node("Conv", ["p", "v"], ["q"], name="b"),
        helper.make_node("Conv", ["q", "w"], ["y"], name="c"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, 8, 8]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    model = prepare(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    spec = QuantizeSpec(layers=rules)
    plans = plan(list(find_layers(model)), spec)
    samples = {"x": generator.normal(size=(8, 4, 8, 8)).astype(np.float32)}
    ranges, _, _ = calibrate(model, plans, spec, samples, None)
    return model, plans, ranges


def test_a_layer_that_is_called_by_its_full_name_is_not_free() -> None:
    model, plans, ranges = chain(ONE, NAMED)
    assert leaving.free(plans, place(model, plans, ranges, CPU)) == ("a", "c")
    model, plans, ranges = chain(LayerRule(name="*", precision="int8"))
    assert leaving.free(plans, place(model, plans, ranges, CPU)) == ("a", "b", "c")


def test_what_is_left_is_fp32_in_the_graph_and_says_why() -> None:
    model, plans, ranges = chain(ONE)
    placed = leaving.place_without(model, plans, ranges, CPU, {"b": "because"})
    rows = {row.name: row for row in placed.layers}
    assert (rows["b"].asked, rows["b"].placed, rows["b"].reason) == ("int8", "fp32", "because")
    assert rows["a"].placed == rows["c"].placed == "int8"
    node = next(item for item in placed.model.graph.node if item.name == "b")
    assert node.input[1] == "v"  # its own weight, as it was
    same = leaving.place_without(model, plans, ranges, CPU, {})
    assert same.model == place(model, plans, ranges, CPU).model


def test_no_range_clips_what_a_layer_that_is_left_reads() -> None:
    """``b`` reads what ``a`` makes as codes; in int8 its percentile clips them, in fp32 nothing may."""
    model, plans, ranges = chain(ONE)
    clipped = place(model, plans, ranges, CPU).tensors["p"]
    whole = leaving.place_without(model, plans, ranges, CPU, {"b": ""}).tensors["p"]
    seen = ranges.tensors["p"]
    assert clipped.high < seen.high
    assert whole.high >= seen.high - whole.scale
    assert whole.low <= seen.low + whole.scale
    assert ranges.tensors["p"] is seen
