"""The codes of what hard sigmoids and hard swishes read, and these activations as those codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from repo_builder.core.graphs import DQ, Q
from repo_builder.core.recipe import LayerRule
from repo_builder.quantize.placement import PROFILES, wanted
from repo_builder.quantize.placement.codes import Codes
from repo_builder.quantize.placement.lower import Gate, gate, gated, reinterpret
from repo_builder.quantize.placement.place import decide
from repo_builder.quantize.placement.writer import Writer
from repo_builder.quantize.ranges import Ranges, TensorRange, WeightRange

N = helper.make_node
CPU = PROFILES["onnxruntime-cpu"]
SWISH = [N("HardSwish", ["c"], ["h"], "h")]
SIGMOID = [N("HardSigmoid", ["c"], ["h"], "h", alpha=1 / 6)]
WRITTEN_OUT = [N("HardSigmoid", ["c"], ["g"], "g", alpha=1 / 6), N("Mul", ["c", "g"], ["h"], "h")]


def network(kit: Any, middle: list[onnx.NodeProto], before: str = "c", **stored: Any) -> onnx.ModelProto:
    """Return 1×1 convolutions with nodes between them, from ``c`` to ``h``."""
    stored |= {"w0": np.eye(4, dtype="f4").reshape(4, 4, 1, 1), "w1": np.ones((4, 4, 1, 1), "f4") / 4}
    nodes = [N("Conv", ["x", "w0"], [before], name="a"), *middle, N("Conv", ["h", "w1"], ["y"], name="b")]
    return onnx.shape_inference.infer_shapes(kit.model(nodes, stored, {"x": [1, 4, 8, 8]}))


def codes_of(kit: Any, model: onnx.ModelProto, low: float, high: float, amax: float | None = None) -> dict[str, Codes]:
    """Return the codes of all tensors, where ``c`` has a range and the others have [-1, 1]."""
    plans = kit.plans_of(model)
    tensors = {name: TensorRange(low=-1, high=1, amax=1, calibrator="max") for name in wanted(model, plans, [CPU])}
    tensors["c"] = TensorRange(low=low, high=high, amax=amax or max(-low, high), calibrator="max")
    weights = {name: WeightRange(amax=np.ones(4, "f4")) for name in "ab"}
    return dict(decide(model, plans, Ranges(tensors=tensors, weights=weights), CPU)[1])


@given(
    kind=st.sampled_from(("HardSwish", "HardSigmoid")), slope=st.floats(0.05, 2), offset=st.floats(0.05, 0.95),
    steps=st.integers(1, 200), below=st.integers(0, 60),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_codes_are_a_hard_sigmoid_of_what_they_stand_for(kit, kind, slope, offset, steps, below):
    node = N(kind, ["x"], ["y"], "n", **({"alpha": slope, "beta": offset} if kind == "HardSigmoid" else {}))
    found = gate(node)
    assert found is not None
    codes = Codes(scale=np.float32(found.start / steps), zero_point=min(255, steps + below), dtype="uint8")
    out = Writer({"q", "x"})
    out.codes["x"] = "q"
    assert reinterpret(out, node, "x", codes, "g") is not None
    every = np.arange(256, dtype=np.uint8)
    graph = helper.make_graph(
        out.nodes, "g", [helper.make_tensor_value_info("q", TensorProto.UINT8, [256])],
        [helper.make_tensor_value_info("g", TensorProto.FLOAT, [256])], out.initializers,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    values = (every.astype("f8") - codes.zero_point) * codes.scale
    exact = np.clip(found.slope * (values + found.start), 0, 1)
    # half a step where it ends between two codes, else as exact as float32
    between = found.end / float(codes.scale) % 1
    allowed = found.slope * float(codes.scale) / 2 * (1e-3 < between < 1 - 1e-3) + 1e-3 * found.slope * codes.scale
    assert np.abs(kit.run(model, {"q": every})[0] - exact).max() <= allowed + 1e-6


def test_no_code_at_the_start_is_no_hard_sigmoid():
    one = Gate(slope=1 / 6, start=3, end=3)
    grid = {"scale": np.float32(3 / 100), "zero_point": 100, "dtype": "uint8"}
    assert gated(Codes(**grid), one) == Codes(
        scale=np.float32(float(np.float32(0.03)) / 6), zero_point=0, dtype="uint8"
    )
    assert gated(Codes(**grid | {"zero_point": 99}), one) is None
    assert gated(Codes(**grid | {"scale": np.float32(3 / 100.4)}), one) is None
    for offset in (-0.1, 0.0, 1.0):  # one that is 0 or 1 at 0
        assert gate(N("HardSigmoid", ["x"], ["y"], beta=offset)) is None


@pytest.mark.parametrize(
    ("middle", "low", "high", "reach"),
    [
        (SWISH, -8, 5, (-3, 5)),  # below, a hard swish is 0
        (WRITTEN_OUT, -8, 5, (-3, 5)),
        (SIGMOID, -8, 5, (-3, 3)),  # and a hard sigmoid 1 above
        (SIGMOID, -0.5, 0.25, (-3, 0.25)),  # as fine as its values at the end of a sum
        (SIGMOID, -8, -2, (-3, 0)),
        (SWISH, -2.5, 2, (-3, 2)),  # a little wider
        (SWISH, -0.5, 2, None),  # much
        (SWISH, -3, 200, None),  # too few codes below 0
        ([N("Abs", ["c"], ["o"], "o"), *SWISH], -8, 5, (-8, 5)),  # another reads it, too
        ([N("Relu", ["r"], ["c"], "r"), *SWISH], 0, 5, None),
        ([N("Clip", ["r", "least", "most"], ["c"], "r"), *SWISH], -1, 1, None),
    ],
)
def test_a_hard_activations_start_is_a_code_where_that_costs_little(kit, middle, low, high, reach):
    folded = {"least": np.float32(-1), "most": np.float32(1)} if middle[0].op_type == "Clip" else {}
    model = network(kit, middle, "r" if middle[0].input[0] == "r" else "c", **folded)
    if any(node.op_type == "Abs" for node in middle):
        model.graph.output.append(helper.make_tensor_value_info("o", TensorProto.FLOAT, None))
    codes, one = codes_of(kit, model, low, high), Gate(slope=1 / 6, start=3, end=3)
    if reach is None:
        assert gated(codes["c"], one) is None
        return
    assert gated(codes["c"], one) is not None
    assert codes["c"].low == pytest.approx(reach[0], abs=float(codes["c"].scale))
    assert reach[1] - float(codes["c"].scale) * 1.01 <= codes["c"].high <= reach[1] + 16 * float(codes["c"].scale)
    # what these codes stand for has these codes again, as a search or fine-tuning may hand it back
    assert codes_of(kit, model, codes["c"].low, codes["c"].high)["c"] == codes["c"]


@pytest.mark.parametrize("middle", [SWISH, SIGMOID, WRITTEN_OUT])
@pytest.mark.parametrize("high", [2.5, 8.0])
def test_hard_activations_are_codes_fused_or_not(kit, tmp_path: Path, middle, high):
    model, feeds = network(kit, middle), {"x": np.clip(kit.noise(1, 4, 8, 8) * np.float32(4), -8, high)}
    placed = kit.placed(model, feeds)
    onnx.checker.check_model(placed.model, full_check=True)
    fused, plain = (kit.run(placed.model, feeds, optimize=item)[0] for item in (True, False))
    kernels = kit.operators(placed.model, feeds, tmp_path)
    assert "QLinearAdd" not in kernels
    assert not {"Mul", "HardSigmoid", "HardSwish", "Conv"} & set(kernels)
    assert ("Clip" in kernels) == (middle is not SIGMOID and high > 3)
    step = float(kit.placed(model, feeds).tensors["y"].scale) if "y" in placed.tensors else 0.01
    assert np.abs(fused - plain).max() <= step * 1.01
    assert kit.decibels(kit.run(model, feeds)[0], fused) > 28


def test_a_gate_whose_codes_are_moved_keeps_them(kit, tmp_path: Path):
    shape = np.int64([1, 4, 8, 8])
    middle = [N("HardSigmoid", ["c"], ["g"], "g"), N("Reshape", ["g", "flat"], ["f"], "f")]
    middle += [N("Reshape", ["f", "shape"], ["h"], "h")]
    model = network(kit, middle, shape=shape, flat=np.int64([1, -1]))
    feeds = {"x": kit.noise(1, 4, 8, 8)}
    placed = kit.placed(model, feeds)
    assert len({(item.scale, item.zero_point) for name, item in placed.tensors.items() if name in "gfh"}) == 1
    assert "QLinearAdd" not in kit.operators(placed.model, feeds, tmp_path)
    assert kit.decibels(kit.run(model, feeds)[0], kit.run(placed.model, feeds, optimize=True)[0]) > 28


def test_two_kinds_of_hard_sigmoid_of_one_tensor_are_sums(kit, tmp_path: Path):
    middle = [N("HardSigmoid", ["c"], ["g"], "g"), N("HardSwish", ["c"], ["s"], "s"), N("Mul", ["g", "s"], ["h"], "h")]
    model, feeds = network(kit, middle), {"x": kit.noise(1, 4, 8, 8)}
    placed = kit.placed(model, feeds, LayerRule(precision="int8"))
    assert kit.operators(placed.model, feeds, tmp_path).count("QLinearAdd") == 2
    assert kit.decibels(kit.run(model, feeds)[0], kit.run(placed.model, feeds, optimize=True)[0]) > 28
    assert {node.op_type for node in placed.model.graph.node} <= {Q, DQ, "Conv", "Add", "Mul"}
