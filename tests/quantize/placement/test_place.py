"""Placement, case by case: where Q/DQ stands, on what scale, and what it must never break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder.compile.onnxruntime.became import became
from repo_builder.core.errors import QuantizeError
from repo_builder.core.recipe import InputQuantizer, LayerRule, WeightQuantizer
from repo_builder.export import qdq
from repo_builder.quantize.placement import PROFILES, place, profile, wanted
from repo_builder.quantize.placement.profiles.onnxruntime_cpu import for_cpu
from repo_builder.quantize.ranges import Ranges, TensorRange

N = helper.make_node
INT8 = LayerRule(precision="int8")
CPU = PROFILES["onnxruntime-cpu"]
P99 = InputQuantizer(calibrator="percentile", percentile=99.0)


def fp32(name: str) -> LayerRule:
    return LayerRule(name=name, precision="fp32")


def weights(kit: Any, *shapes: tuple[int, ...], scale: float = 1.0) -> dict[str, np.ndarray]:
    """Return ``w0``, ``w1``, ... of a gain of about 1."""
    return {
        f"w{place}": kit.noise(*shape, seed=place + 1) / np.float32(np.sqrt(np.prod(shape[1:])) / scale)
        for place, shape in enumerate(shapes)
    }


def residual(kit: Any) -> onnx.ModelProto:
    """Convolutions around a sum: stem, a, b, and the stem's output added to b's."""
    nodes = [
        N("Conv", ["x", "w0"], ["c0"], name="stem", pads=[1] * 4),
        N("Relu", ["c0"], ["r0"], name="r0"),
        N("Conv", ["r0", "w1"], ["c1"], name="a", pads=[1] * 4),
        N("Relu", ["c1"], ["r1"], name="r1"),
        N("Conv", ["r1", "w2"], ["c2"], name="b", pads=[1] * 4),
        N("Add", ["c2", "r0"], ["s"], name="add"),
        N("Relu", ["s"], ["r2"], name="r2"),
        N("GlobalAveragePool", ["r2"], ["g"], name="mean"),
        N("Flatten", ["g"], ["f"], name="flat"),
        N("Gemm", ["f", "w3"], ["y"], name="head"),
    ]
    shapes = ((8, 3, 3, 3), (8, 8, 3, 3), (8, 8, 3, 3), (8, 5))
    return kit.prepare(kit.model(nodes, weights(kit, *shapes), {"x": ["n", 3, 8, 8]}))


# --- which tensors ---------------------------------------------------------------------------------------------------


def test_a_residual_network_runs_in_int8_from_end_to_end(kit, tmp_path: Path) -> None:
    model, feeds = residual(kit), {"x": kit.noise(4, 3, 8, 8)}
    placed = kit.placed(model, feeds)
    assert list(placed.tensors) == ["x", "r0", "r1", "c2", "r2", "g", "f"]  # no Q before a Relu, none at the output
    assert [placed.tensors[name].zero_point for name in ("r0", "r1", "r2", "g")] == [0, 0, 0, 0]
    assert 0 < placed.tensors["c2"].zero_point < 255
    assert placed.tensors["f"].scale == placed.tensors["g"].scale
    kernels = kit.operators(placed.model, feeds, tmp_path)
    assert kernels.count("QLinearConv") == 3
    assert {"QLinearAdd", "QLinearGlobalAveragePool", "QGemm"} <= set(kernels)
    assert not {"Conv", "FusedConv", "Add", "Relu", "Gemm"} & set(kernels)
    assert kit.decibels(kit.run(model, feeds)[0], kit.run(placed.model, feeds, optimize=True)[0]) > 28


def test_unsigned_codes_use_all_255_steps(kit) -> None:
    model, feeds = residual(kit), {"x": kit.noise(4, 3, 8, 8)}
    placed = kit.placed(model, feeds)
    codes = kit.run(_with_types(placed.model), feeds, "r0/codes", "x/codes")
    assert (codes[0].min(), codes[0].max()) == (0, 255)
    assert codes[1].max() - codes[1].min() == 255


def _with_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose codes are outputs, which ``run`` would otherwise declare as float."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name in ("r0/codes", "x/codes"):
        copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.UINT8, None))
    return copy


def test_tensorrt_gets_symmetric_pairs_that_its_parser_takes_and_the_residual_operand_among_them(kit) -> None:
    placed = kit.placed(residual(kit), {"x": kit.noise(4, 3, 8, 8)}, target="tensorrt")
    assert qdq.lint(placed.model, newest_opset=17) == ()
    assert list(placed.tensors) == ["x", "r0", "r1", "r2", "f"]
    assert {item.dtype for item in placed.tensors.values()} == {"int8"}
    assert "add" in placed.tensors["r0"].int8_readers
    assert "c2" not in placed.tensors  # the sum becomes a part of this convolution
    biases = [node for node in placed.model.graph.node if node.op_type == "DequantizeLinear" and "bias" in node.name]
    assert not biases


def test_a_rule_keeps_an_add_float_and_the_convolutions_around_it_int8(kit, tmp_path: Path) -> None:
    feeds = {"x": kit.noise(4, 3, 8, 8)}
    placed = kit.placed(residual(kit), feeds, INT8, LayerRule(type="Add", precision="fp32"))
    assert "add" in placed.tensors["r0"].float_readers
    assert kit.operators(placed.model, feeds, tmp_path).count("QLinearConv") == 3


def test_pools_concat_resize_and_what_moves_values_share_or_keep_scales(kit, tmp_path: Path) -> None:
    nodes = [
        N("Conv", ["x", "w0"], ["c"], name="a", pads=[1] * 4),
        N("LeakyRelu", ["c"], ["l"], name="leaky"),
        N("MaxPool", ["l"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        N("Resize", ["p", "", "up"], ["u"], name="up", mode="nearest"),
        N("Concat", ["u", "l"], ["k"], name="cat", axis=1),
        N("Conv", ["k", "w1"], ["y"], name="b"),
    ]
    stored = {**weights(kit, (4, 3, 3, 3), (2, 8, 1, 1)), "up": np.float32([1, 1, 2, 2])}
    model, feeds = kit.prepare(kit.model(nodes, stored, {"x": [2, 3, 8, 8]})), {"x": kit.noise(2, 3, 8, 8)}
    placed = kit.placed(model, feeds)
    assert placed.tensors["l"].scale == placed.tensors["p"].scale == placed.tensors["u"].scale
    kernels = kit.operators(placed.model, feeds, tmp_path)
    assert {"QLinearConcat", "QLinearLeakyRelu"} <= set(kernels)
    assert "Conv" not in kernels


@pytest.mark.parametrize("end", ["Flatten", "Gemm"])
def test_a_mean_that_ends_a_network_is_int8_and_one_that_a_float_layer_reads_is_not(
    kit, tmp_path: Path, end: str
) -> None:
    last = N("Gemm", ["f", "w1"], ["y"], name="head") if end == "Gemm" else N("Identity", ["f"], ["y"], name="same")
    nodes = [
        N("Conv", ["x", "w0"], ["c"], name="a"),
        N("GlobalAveragePool", ["c"], ["m"], name="mean"),
        N("Flatten", ["m"], ["f"], name="flat"),
        last,
    ]
    model = kit.prepare(kit.model(nodes, weights(kit, (8, 3, 1, 1), (8, 5)), {"x": [2, 3, 6, 6]}))
    feeds = {"x": kit.noise(2, 3, 6, 6)}
    placed = kit.placed(model, feeds, INT8, LayerRule(name="head", precision="fp32", optional=True))
    kernels = kit.operators(placed.model, feeds, tmp_path)
    assert ("QLinearGlobalAveragePool" in kernels) == (end == "Flatten")
    assert kit.decibels(kit.run(model, feeds)[0], kit.run(placed.model, feeds)[0]) > 30


def test_hard_tanh_between_convolutions_does_not_stop_the_first_from_being_int8(kit, tmp_path: Path) -> None:
    nodes = [
        N("Conv", ["x", "w0"], ["c"], name="a"), N("Clip", ["c", "lo", "hi"], ["h"], name="tanh"),
        N("Conv", ["h", "w1"], ["y"], name="b"),
    ]  # fmt: skip
    stored = {**weights(kit, (4, 3, 1, 1), (2, 4, 1, 1)), "lo": np.float32(-1), "hi": np.float32(1)}
    model, feeds = kit.prepare(kit.model(nodes, stored, {"x": [2, 3, 4, 4]})), {"x": kit.noise(2, 3, 4, 4)}
    assert kit.operators(kit.placed(model, feeds).model, feeds, tmp_path).count("QLinearConv") == 2


@pytest.mark.parametrize("act", ["Relu", "Clip"])
@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_a_linear_layer_before_a_clip_stays_int8(kit, tmp_path: Path, kind: str, act: str) -> None:
    more = ["lo", "hi"] if act == "Clip" else []
    nodes = [
        N(kind, ["x", "w0"], ["h"], name="fc"), N(act, ["h", *more], ["r"], name="act"),
        N("Softmax", ["r"], ["y"], name="s"),
    ]  # fmt: skip
    stored = {**weights(kit, (8, 6)), **({"lo": np.float32(-1), "hi": np.float32(1)} if more else {})}
    model, feeds = kit.prepare(kit.model(nodes, stored, {"x": ["n", 8]})), {"x": kit.noise(4, 8)}
    kernels = kit.operators(kit.placed(model, feeds).model, feeds, tmp_path)
    assert {"QGemm", "QLinearMatMul"} & set(kernels)
    assert not {"Gemm", "MatMul", "FusedGemm"} & set(kernels)


@pytest.mark.parametrize("shape", [(4, 8), (2, 3, 8), ("n", 3, 8), ("n", 8)])
def test_a_matmul_and_the_bias_behind_it_stay_int8(kit, tmp_path: Path, shape: tuple[Any, ...]) -> None:
    nodes = [N("MatMul", ["x", "w0"], ["h"], name="fc"), N("Add", ["b", "h"], ["y"], name="bias")]
    model = kit.prepare(kit.model(nodes, {**weights(kit, (8, 6)), "b": kit.noise(6, seed=9)}, {"x": list(shape)}))
    feeds = {"x": kit.noise(*(2 if item == "n" else item for item in shape))}
    placed = kit.placed(model, feeds)
    kernels = kit.operators(placed.model, feeds, tmp_path)
    assert {"QGemm", "MatMulIntegerToFloat"} & set(kernels)
    assert not {"Gemm", "MatMul"} & set(kernels)
    assert kit.decibels(kit.run(model, feeds)[0], kit.run(placed.model, feeds, optimize=True)[0]) > 35


# --- who reads what --------------------------------------------------------------------------------------------------


def test_a_float_reader_of_what_a_float_node_makes_reads_the_original(kit) -> None:
    nodes = [
        N("Abs", ["x"], ["h"], name="abs"), N("Conv", ["h", "w0"], ["c"], name="int8"),
        N("Exp", ["h"], ["e"], name="exp"), N("Add", ["c", "e"], ["y"], name="add"),
    ]  # fmt: skip
    model, feeds = (
        kit.prepare(kit.model(nodes, weights(kit, (3, 3, 1, 1)), {"x": [2, 3, 4, 4]})),
        {"x": kit.noise(2, 3, 4, 4)},
    )
    placed = kit.placed(model, feeds)
    assert (placed.tensors["h"].float_readers, placed.tensors["h"].floats_read) == (("exp",), "original")
    np.testing.assert_array_equal(kit.run(model, feeds, "e")[0], kit.run(placed.model, feeds, "e")[0])
    assert placed.tensors["c"].floats_read == "rounded"  # else the convolution would not run in int8


def test_a_range_that_is_clipped_for_an_int8_reader_never_clips_a_float_one(kit) -> None:
    model = residual(kit)
    plans = kit.plans_of(
        model, LayerRule(precision="int8", input=P99), fp32("b"), LayerRule(type="Add", precision="fp32")
    )
    needed = wanted(model, plans, [CPU])
    assert needed["x"].calibrators == (P99,)
    assert needed["r0"].calibrators == (InputQuantizer(),)  # the sum reads it, rounded, too
    ranges = kit.ranges_of(model, plans, list(needed), {"x": kit.noise(4, 3, 8, 8)})
    clipped = {
        name: TensorRange(low=item.low, high=item.high, amax=item.amax / 4, calibrator="percentile 99")
        for name, item in ranges.tensors.items()
    }
    placed = place(model, plans, Ranges(tensors=clipped, weights=ranges.weights), CPU)
    assert placed.tensors["r0"].high == pytest.approx(ranges.tensors["r0"].high, rel=1e-5)
    assert placed.tensors["x"].high == pytest.approx(ranges.tensors["x"].amax / 4, rel=0.02)


def test_the_readers_rules_govern_a_tensor_through_glue_and_the_widest_wins(kit) -> None:
    nodes = [
        N("Conv", ["x", "w0"], ["c"], name="a"), N("MaxPool", ["c"], ["p"], name="pool", kernel_shape=[2, 2]),
        N("Conv", ["p", "w1"], ["d"], name="b"), N("Conv", ["c", "w2"], ["e"], name="c"),
        N("GlobalAveragePool", ["d"], ["y"], name="m"), N("GlobalAveragePool", ["e"], ["z"], name="n"),
    ]  # fmt: skip
    stored = weights(kit, (4, 3, 1, 1), (4, 4, 1, 1), (4, 4, 1, 1))
    model = kit.prepare(kit.model(nodes, stored, {"x": [2, 3, 4, 4]}, ("y", "z")))
    entropy = InputQuantizer(calibrator="entropy")
    rules = (LayerRule(precision="int8", input=P99), LayerRule(name="c", precision="int8", input=entropy))
    needed = wanted(model, kit.plans_of(model, *rules), [CPU])
    assert (needed["x"].calibrators, needed["x"].layers) == ((P99,), ("a",))
    assert (needed["p"].calibrators, needed["p"].layers) == ((P99,), ("b",))
    assert needed["c"].calibrators == (entropy, P99)
    assert needed["d"].calibrators == (InputQuantizer(),)  # a float pool reads it, rounded


def test_fp32_layers_between_int8_ones_stay_fp32_in_the_runtime(kit, tmp_path: Path) -> None:
    feeds = {"x": kit.noise(4, 3, 8, 8)}
    placed = kit.placed(residual(kit), feeds, INT8, fp32("a"), fp32("head"))
    kernels = kit.operators(placed.model, feeds, tmp_path)
    assert kernels.count("QLinearConv") == 2
    assert sum(kernel in ("Conv", "FusedConv") for kernel in kernels) == 1
    assert "Gemm" in kernels


def test_subgraphs_and_functions_keep_what_they_read(kit) -> None:
    body = [
        helper.make_graph([N(op, ["r"], [op])], op, [], [helper.make_tensor_value_info(op, 1, None)])
        for op in ("Abs", "Neg")
    ]
    function = helper.make_function(
        "own", "Twice", ["a"], ["b"], [N("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    nodes = [
        N("Conv", ["x", "w0"], ["c"], name="a"), N("Relu", ["c"], ["r"], name="relu"),
        N("If", ["yes"], ["i"], name="if", then_branch=body[0], else_branch=body[1]),
        N("Conv", ["r", "w1"], ["d"], name="b"), N("Twice", ["d"], ["t"], name="twice", domain="own"),
        N("Add", ["t", "i"], ["y"], name="sum"),
    ]  # fmt: skip
    stored = {**weights(kit, (4, 3, 1, 1), (4, 4, 1, 1)), "yes": np.bool_(True)}
    model = kit.prepare(kit.model(nodes, stored, {"x": [2, 3, 4, 4]}, functions=[function]))
    feeds = {"x": kit.noise(2, 3, 4, 4)}
    placed = kit.placed(model, feeds)
    onnx.checker.check_model(placed.model, full_check=True)
    assert placed.tensors["r"].float_readers == ("(subgraph)",)
    assert placed.tensors["d"].float_readers == ("twice",)
    assert list(placed.model.functions) == [function]
    for optimize in (False, True):
        assert kit.decibels(kit.run(model, feeds)[0], kit.run(placed.model, feeds, optimize=optimize)[0]) > 30


# --- weights and biases ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("size", [0.0, 1e-10])
def test_a_channel_of_almost_no_weight_keeps_its_bias(kit, size: float, optimize: bool) -> None:
    stored = {**weights(kit, (6, 3, 3, 3)), "b": np.float32([3, 0, 0.1, -0.2, 0.3, 0])}
    stored["w0"][0] = size
    model = kit.prepare(kit.model([N("Conv", ["x", "w0", "b"], ["y"], name="a")], stored, {"x": [2, 3, 6, 6]}))
    feeds = {"x": kit.noise(2, 3, 6, 6)}
    served = kit.run(kit.placed(model, feeds).model, feeds, optimize=optimize)[0]
    assert np.abs(served[:, 0] - 3).max() < 0.05


@pytest.mark.parametrize("bias", ["N", "1N", "11", "1", "MN", "M1", "input", None])
@pytest.mark.parametrize(("alpha", "beta", "turned"), [(1.0, 1.0, 0), (0.5, -2.0, 1), (-1.0, 0.0, 0)])
def test_gemm_in_all_its_forms(kit, tmp_path: Path, bias: str | None, alpha: float, beta: float, turned: int) -> None:
    shapes = {"N": (5,), "1N": (1, 5), "11": (1, 1), "1": (1,), "MN": (4, 5), "M1": (4, 1)}
    stored = {"w": kit.noise(5, 8) if turned else kit.noise(8, 5)}
    stored |= {"c": kit.noise(*shapes[bias], seed=3)} if bias in shapes else {}
    inputs = {"x": [4, 8], **({"c": [4, 5]} if bias == "input" else {})}
    node = N("Gemm", ["x", "w", *(["c"] if bias else [])], ["y"], name="fc", alpha=alpha, beta=beta, transB=turned)
    model = kit.prepare(kit.model([node], stored, inputs))
    feeds = {"x": kit.noise(4, 8, seed=4), **({"c": kit.noise(4, 5, seed=5)} if bias == "input" else {})}
    for target in PROFILES:
        placed = kit.placed(model, feeds, target=target)
        onnx.checker.check_model(placed.model, full_check=True)
        for optimize in (False, True):
            assert kit.decibels(kit.run(model, feeds)[0], kit.run(placed.model, feeds, optimize=optimize)[0]) > 35
    assert "QGemm" in kit.operators(kit.placed(model, feeds).model, feeds, tmp_path)


def test_tied_weights_and_a_layer_that_runs_twice(kit) -> None:
    nodes = [
        N("MatMul", ["x", "w"], ["h"], name="in"), N("Relu", ["h"], ["r"], name="relu"),
        N("Gemm", ["r", "w"], ["k"], name="out", transB=1), N("MatMul", ["k", "w"], ["m"], name="in#2"),
        N("Gather", ["w", "rows"], ["g"], name="rows"), N("Add", ["m", "g"], ["y"], name="sum"),
    ]  # fmt: skip
    stored = {"w": kit.noise(6, 8) / 2, "rows": np.int64([0, 3])}
    model, feeds = kit.model(nodes, stored, {"x": [2, 6]}), {"x": kit.noise(2, 6)}
    model = onnx.shape_inference.infer_shapes(model)  # not prepared: that would take '#' out of the names
    plans = kit.plans_of(model, INT8)
    plans = [item for item in plans if item.name != "in#2"]
    ranges = kit.ranges_of(model, plans, list(wanted(model, plans, [CPU])), feeds)
    placed = place(model, plans, ranges, CPU)
    onnx.checker.check_model(placed.model, full_check=True)
    assert [(row.name, row.placed) for row in placed.layers] == [("in", "int8"), ("out", "int8")]
    stored_codes = [
        item for item in placed.model.graph.initializer if item.data_type == TensorProto.INT8 and len(item.dims) == 2
    ]
    assert len(stored_codes) == 2  # by columns for both runs of ``in``, by rows for ``out``
    assert "w" in {item.name for item in placed.model.graph.initializer}  # rows are still looked up in it
    assert kit.decibels(kit.run(model, feeds)[0], kit.run(placed.model, feeds, optimize=True)[0]) > 30


@pytest.mark.parametrize("target", list(PROFILES))
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_convolutions_of_every_rank_and_grouping(kit, target: str, rank: int, groups: int, kind: str) -> None:
    shape = (4, 4 // groups, *[3] * rank)
    nodes = [
        N(kind, ["x", "w0", "b"], ["h"], name="a", group=groups), N("Relu", ["h"], ["r"], name="r"),
        N("Conv", ["r", "w1"], ["y"], name="c"),
    ]  # fmt: skip
    stored = {**weights(kit, shape, (4, 4, *[1] * rank)), "b": kit.noise(4, seed=8)}
    model = kit.prepare(kit.model(nodes, stored, {"x": [2, 4, *[6] * rank]}))
    feeds = {"x": kit.noise(2, 4, *[6] * rank)}
    placed = kit.placed(model, feeds, target=target)
    onnx.checker.check_model(placed.model, full_check=True)
    for optimize in (False, True):
        assert kit.decibels(kit.run(model, feeds)[0], kit.run(placed.model, feeds, optimize=optimize)[0]) > 25
    row = placed.layers[0]
    float_on_cpu = target == "onnxruntime-cpu" and kind == "ConvTranspose"
    assert (row.placed, bool(row.reason)) == (("fp32", True) if float_on_cpu else ("int8", False))


def test_weights_in_7_bits_where_sums_saturate_and_float_where_asked(kit) -> None:
    model, feeds = residual(kit), {"x": kit.noise(4, 3, 8, 8)}
    plans = kit.plans_of(model, INT8)
    ranges = kit.ranges_of(model, plans, list(wanted(model, plans, [CPU])), feeds)
    placed = place(model, plans, ranges, for_cpu("7 bits"))
    codes = [
        numpy_helper.to_array(item) for item in placed.model.graph.initializer if item.data_type == TensorProto.INT8
    ]
    assert max(int(np.abs(item.astype(int)).max()) for item in codes) == 63
    assert kit.decibels(kit.run(model, feeds)[0], kit.run(placed.model, feeds)[0]) > 22
    left = place(model, plans, ranges, for_cpu("float"))
    assert not left.tensors
    assert {row.placed for row in left.layers} == {"fp32"}
    assert "VNNI" in left.layers[0].reason


def test_one_scale_a_weight_where_that_is_asked(kit, tmp_path: Path) -> None:
    model, feeds = residual(kit), {"x": kit.noise(4, 3, 8, 8)}
    plans = kit.plans_of(model, LayerRule(precision="int8", weight=WeightQuantizer(per_channel=False)))
    ranges = kit.ranges_of(model, plans, list(wanted(model, plans, [CPU])), feeds)
    scalar = {name: type(item)(amax=item.amax.max().reshape(())) for name, item in ranges.weights.items()}
    placed = place(model, plans, Ranges(tensors=ranges.tensors, weights=scalar), CPU)
    onnx.checker.check_model(placed.model, full_check=True)
    assert kit.operators(placed.model, feeds, tmp_path).count("QLinearConv") == 3


# --- layers that cannot be int8, each with its reason ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "inputs", "reason"),
    [
        ({}, {"w": [8, 6]}, "computed while the model runs"),
        ({"w": np.ones((8, 6), np.float32)}, {"w": [8, 6]}, "an input of the graph"),
        ({"w": np.ones((2, 8, 6), np.float32)}, {}, "has the shape [2, 8, 6]"),
    ],
)
def test_a_weight_that_is_no_stored_matrix(kit, stored: dict[str, Any], inputs: dict[str, Any], reason: str) -> None:
    model = kit.model([N("MatMul", ["x", "w"], ["y"], name="fc")], stored, {"x": [4, 8], **inputs})
    plans = [type(item)(**{**item.__dict__, "name": "fc"}) for item in kit.plans_of(residual(kit), INT8)[:1]]
    placed = place(model, plans, Ranges(), CPU)
    assert placed.layers[0].placed == "fp32"
    assert reason in placed.layers[0].reason
    assert not placed.tensors


def test_a_weight_that_constants_make_is_quantized(kit) -> None:
    nodes = [N("Mul", ["w0", "g"], ["wg"], name="gain"), N("Conv", ["x", "wg"], ["y"], name="a")]
    model = kit.model(nodes, {**weights(kit, (4, 3, 1, 1)), "g": np.float32([0.1])}, {"x": [2, 3, 4, 4]})
    feeds = {"x": kit.noise(2, 3, 4, 4)}
    plans = [type(item)(**{**item.__dict__, "name": "a"}) for item in kit.plans_of(residual(kit), INT8)[:1]]
    ranges = kit.ranges_of(model, plans, list(wanted(model, plans, [CPU])), feeds)
    placed = place(model, plans, ranges, CPU)
    assert placed.layers[0].placed == "int8"
    assert "gain" not in {node.name for node in placed.model.graph.node}
    assert kit.decibels(kit.run(model, feeds)[0], kit.run(placed.model, feeds, optimize=True)[0]) > 35


def test_a_layer_that_no_node_computes_and_one_that_nothing_reached(kit) -> None:
    model = residual(kit)
    plans = kit.plans_of(model, INT8)
    lost = type(plans[0])(**{**plans[0].__dict__, "name": "lost"})
    ranges = kit.ranges_of(model, plans, list(wanted(model, plans, [CPU])), {"x": kit.noise(4, 3, 8, 8)})
    tensors = {name: item for name, item in ranges.tensors.items() if name != "f"}
    placed = place(model, [*plans, lost], Ranges(tensors=tensors, weights=ranges.weights), CPU)
    reasons = {row.name: row.reason for row in placed.layers if row.reason}
    assert reasons == {"head": "nothing reached it in calibration", "lost": "no node of the graph computes it"}


# --- ranges at the edge ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("x_size", "w_size"), [(1e-12, 1.0), (1.0, 3e-13), (1e-9, 1e-9), (1e20, 1e10)])
def test_ranges_of_any_size_that_float32_divides_by(kit, x_size: float, w_size: float) -> None:
    x, w = kit.noise(16, 8) * np.float32(x_size), kit.noise(8, 6, seed=2) * np.float32(w_size)
    model = kit.prepare(kit.model([N("Gemm", ["x", "w"], ["y"], name="fc")], {"w": w}, {"x": ["n", 8]}))
    for target in PROFILES:
        placed = kit.placed(model, {"x": x}, target=target)
        for optimize in (False, True):
            assert kit.decibels(kit.run(model, {"x": x})[0], kit.run(placed.model, {"x": x}, optimize=optimize)[0]) > 30


@pytest.mark.parametrize("values", [(np.nan, np.nan), (-np.inf, 1.0), (0.0, 0.0), (-1e-39, 1e-39)])
def test_a_range_that_8_bits_cannot_cover_is_refused_with_the_layers_name(kit, values: tuple[float, float]) -> None:
    model = residual(kit)
    plans = kit.plans_of(model, INT8)
    ranges = kit.ranges_of(model, plans, list(wanted(model, plans, [CPU])), {"x": kit.noise(4, 3, 8, 8)})
    low, high = values
    bad = TensorRange(low=low, high=high, amax=max(abs(low), abs(high)), calibrator="max")
    with pytest.raises(QuantizeError, match=r"^stem: its input"):
        place(model, plans, Ranges(tensors={**ranges.tensors, "x": bad}, weights=ranges.weights), CPU)


def test_tensors_of_one_value_of_none_and_without_axes(kit) -> None:
    nodes = [
        N("Conv", ["x", "w0"], ["c"], name="a"), N("Mul", ["c", "scalar"], ["m"], name="scale"),
        N("Conv", ["m", "w1"], ["d"], name="b"), N("ReduceMax", ["d"], ["top"], name="top", keepdims=0),
        N("Mul", ["d", "top"], ["y"], name="last"), N("Concat", ["d", "empty"], ["z"], name="cat", axis=1),
    ]  # fmt: skip
    stored = weights(kit, (4, 3, 1, 1), (4, 4, 1, 1))
    stored |= {"scalar": np.float32(0.5), "empty": np.zeros((2, 0, 4, 4), np.float32)}
    model, feeds = (
        kit.prepare(kit.model(nodes, stored, {"x": [2, 3, 4, 4]}, ("y", "z"))),
        {"x": np.full((2, 3, 4, 4), 3, np.float32)},
    )
    placed = kit.placed(model, feeds)
    onnx.checker.check_model(placed.model, full_check=True)
    for optimize in (False, True):
        for exact, served in zip(kit.run(model, feeds), kit.run(placed.model, feeds, optimize=optimize), strict=True):
            assert kit.decibels(exact, served) > 25


# --- files from elsewhere --------------------------------------------------------------------------------------------


def test_a_graph_of_opset_11_is_converted_and_placed_per_channel(kit) -> None:
    nodes = [N("Conv", ["x", "w0"], ["c"], name="a"), N("Clip", ["c", "lo", "hi"], ["y"], name="clip")]
    stored = {**weights(kit, (4, 3, 1, 1)), "lo": np.float32(0), "hi": np.float32(6)}
    model, feeds = kit.model(nodes, stored, {"x": [2, 3, 4, 4]}, opset=11), {"x": kit.noise(2, 3, 4, 4)}
    plans = [type(item)(**{**item.__dict__, "name": "a"}) for item in kit.plans_of(residual(kit), INT8)[:1]]
    ranges = kit.ranges_of(model, plans, list(wanted(model, plans, [CPU])), feeds)
    placed = place(model, plans, ranges, CPU)
    assert placed.model.opset_import[0].version == 13
    onnx.checker.check_model(placed.model, full_check=True)
    assert kit.decibels(kit.run(model, feeds)[0], kit.run(placed.model, feeds, optimize=True)[0]) > 30


def test_names_that_placement_would_give_may_be_taken(kit) -> None:
    model = residual(kit)
    names = {item.name for item in kit.placed(model, {"x": kit.noise(4, 3, 8, 8)}).model.graph.initializer}
    names |= {node.name for node in kit.placed(model, {"x": kit.noise(4, 3, 8, 8)}).model.graph.node}
    for name in sorted(
        names - {item.name for item in model.graph.initializer} - {node.name for node in model.graph.node}
    ):
        model.graph.node.append(N("Identity", ["x"], [name], name=f"taken {name}"))
    placed = kit.placed(model, {"x": kit.noise(4, 3, 8, 8)})
    onnx.checker.check_model(placed.model, full_check=True)


def test_an_input_that_is_an_output_and_an_output_that_is_a_convolution(kit) -> None:
    nodes = [N("Conv", ["x", "w0"], ["c"], name="a"), N("Conv", ["c", "w1"], ["y"], name="b")]
    model = kit.prepare(
        kit.model(nodes, weights(kit, (3, 3, 1, 1), (3, 3, 1, 1)), {"x": [2, 3, 4, 4]}, ("x", "c", "y"))
    )
    feeds = {"x": kit.noise(2, 3, 4, 4)}
    placed = kit.placed(model, feeds)
    onnx.checker.check_model(placed.model, full_check=True)
    served = kit.run(placed.model, feeds, optimize=True)
    np.testing.assert_array_equal(served[0], feeds["x"])
    for exact, given in zip(kit.run(model, feeds), served, strict=True):
        assert kit.decibels(exact, given) > 30


def test_a_profile_has_a_name_and_an_unknown_one_is_refused() -> None:
    assert all(profile(name).name == name for name in PROFILES)
    with pytest.raises(QuantizeError, match="onnxruntime-cpu"):
        profile("onnxruntime-cpus")


# --- glue that is written in another form ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["HardSwish", "HardSigmoid", "written out", "Scale", "Over"])
def test_hard_activations_and_scalings_leave_no_float_operator_behind(kit, tmp_path: Path, form: str) -> None:
    stored = weights(kit, (4, 3, 1, 1), (4, 4, 1, 1))
    stored |= {"three": np.float32(3), "zero": np.float32(0), "six": np.float32([6]), "six0": np.float32(6)}
    middle = {
        "HardSwish": [N("HardSwish", ["c"], ["h"], name="h")],
        "HardSigmoid": [N("HardSigmoid", ["c"], ["s"], name="s", alpha=0.2), N("Mul", ["c", "s"], ["h"], name="h")],
        "Scale": [N("Mul", ["six", "c"], ["h"], name="h")],
        "Over": [N("Relu", ["c"], ["r"], name="r"), N("Div", ["r", "six"], ["h"], name="h")],
        "written out": [
            N("Add", ["c", "three"], ["a"], name="a+"), N("Clip", ["a", "zero", "six0"], ["s"], name="s"),
            N("Mul", ["c", "s"], ["m"], name="m"), N("Div", ["m", "six"], ["h"], name="h"),
        ],
    }[form]  # fmt: skip
    nodes = [N("Conv", ["x", "w0"], ["c"], name="a"), *middle, N("Conv", ["h", "w1"], ["y"], name="b")]
    model = kit.model(nodes, stored, {"x": [2, 3, 6, 6]})
    model = onnx.shape_inference.infer_shapes(model)  # not prepared, which would fold a scaling into the convolution
    feeds = {"x": kit.noise(2, 3, 6, 6) * np.float32(2)}
    placed = kit.placed(model, feeds)
    onnx.checker.check_model(placed.model, full_check=True)
    for optimize in (False, True):
        assert kit.decibels(kit.run(model, feeds)[0], kit.run(placed.model, feeds, optimize=optimize)[0]) > 28
    assert kit.unread(placed.model, model) == []  # ONNX Runtime runs what nobody reads
    kernels = set(kit.operators(placed.model, feeds, tmp_path))
    added = {"QLinearAdd"} if form == "written out" else {"Clip"}  # a Clip of codes
    assert kernels <= {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMul", "Transpose"} | added
    if form in ("Scale", "Over"):
        assert not {"QLinearMul", "QLinearAdd"} & kernels  # the same codes, with another step


# --- what the runtime must not do, and what only a rule asks for ------------------------------------------------------


@pytest.mark.parametrize("between", ["", "MaxPool", "Transpose"])
@pytest.mark.parametrize("side", ["before", "behind"])
def test_a_float_layer_stays_float_whatever_moves_values_around_it(
    kit, tmp_path: Path, between: str, side: str
) -> None:
    """ONNX Runtime moves DQ and Q over a MaxPool or Transpose, and would then see them next to the float layer."""
    settings = {"MaxPool": {"kernel_shape": [1, 1]}, "Transpose": {"perm": [0, 1, 3, 2]}}.get(between, {})
    moved = [N(between, ["r0" if side == "before" else "r1"], ["m"], name="move", **settings)] if between else []
    one, two = ("m", "r1") if between and side == "before" else ("r0", "m" if between else "r1")
    nodes = [
        N("Conv", ["x", "w0"], ["c0"], name="a"), N("Relu", ["c0"], ["r0"], name="relu0"),
        *(moved if side == "before" else []),
        N("Conv", [one, "w1"], ["c1"], name="float"), N("Relu", ["c1"], ["r1"], name="relu1"),
        *(moved if side == "behind" else []),
        N("Conv", [two, "w2"], ["c2"], name="b"), N("Relu", ["c2"], ["y"], name="relu2"),
    ]  # fmt: skip
    shapes = ((8, 3, 1, 1), (8, 8, 1, 1), (8, 8, 1, 1))
    model = kit.prepare(kit.model(nodes, weights(kit, *shapes), {"x": ["n", 3, 6, 6]}))
    made = kit.placed(model, {"x": kit.noise(4, 3, 6, 6)}, INT8, fp32("float"))
    path = tmp_path / "model.onnx"
    onnx.save(made.model, path)
    expected = {"a": "int8", "float": "fp32", "b": "int8"}
    assert {row.name: row.got for row in became(path, list(expected))} == expected


def test_products_of_attention_are_int8_only_where_a_rule_asks(kit, tmp_path: Path) -> None:
    nodes = [
        N("MatMul", ["x", "w0"], ["q"], name="query"), N("MatMul", ["x", "w1"], ["k"], name="key"),
        N("Transpose", ["k"], ["t"], name="turn", perm=[0, 2, 1]),
        N("MatMul", ["q", "t"], ["s"], name="scores"), N("Softmax", ["s"], ["y"], name="soft"),
    ]  # fmt: skip
    model = kit.prepare(kit.model(nodes, weights(kit, (8, 8), (8, 8)), {"x": ["n", 5, 8]}))
    feeds = {"x": kit.noise(4, 5, 8)}
    (exact,) = kit.run(model, feeds, "y")
    for rules, expected in (((INT8,), "fp32"), ((INT8, LayerRule(type="MatMul", precision="int8")), "int8")):
        made = kit.placed(model, feeds, *rules)
        outcomes = {row.name: row.placed for row in made.layers}
        assert outcomes.get("scores", "fp32") == expected
        path = tmp_path / "model.onnx"
        onnx.save(made.model, path)
        assert {row.name: row.got for row in became(path)}["scores"] == expected
        (found,) = kit.run(made.model, feeds, "y", optimize=True)
        assert kit.decibels(exact, found) > 20
