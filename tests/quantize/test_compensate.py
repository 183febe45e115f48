"""GPTQ's codes against the nearest ones, and from a rule to the graph that is placed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from repo_builder.core.errors import QuantizeError
from repo_builder.core.recipe import LayerRule, QuantizeSpec, WeightQuantizer
from repo_builder.quantize import compensate, store
from repo_builder.quantize.calibrate import calibrate
from repo_builder.quantize.layers import find_layers
from repo_builder.quantize.placement import PROFILES, blocks, place
from repo_builder.quantize.prepare import prepare
from repo_builder.quantize.ranges import Observed, Ranges
from repo_builder.quantize.rules import plan

WIDTH = 48


def inputs_of(rows: int, inputs: int, seed: int, rank: int) -> np.ndarray:
    """Rows of few directions, as activations are, with noise on top."""
    random = np.random.default_rng(seed)
    few = random.standard_normal((rows, rank)) @ random.standard_normal((rank, inputs))
    return (few + 0.1 * random.standard_normal((rows, inputs))).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 150), st.integers(1, 5)),
    seed=st.integers(0, 99),
    rank=st.integers(1, 20),
    block=st.sampled_from([16, 32]),
    symmetric=st.booleans(),
    size=st.sampled_from([0.0, 1e-20, 1.0, 1e6]),
)
def test_no_output_loses_more_than_with_the_nearest_codes(
    shape: tuple[int, int], seed: int, rank: int, block: int, symmetric: bool, size: float
) -> None:
    x = inputs_of(64, shape[0], seed, rank) * np.float32(size)
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    found = blocks.find(weight, block=block, symmetric=symmetric)
    products = x.T @ x / np.float32(len(x))
    codes, nearest = compensate.chosen(weight, found, products), blocks.codes(weight, found)
    assert codes.dtype == nearest.dtype
    least, most = (-8, 7) if symmetric else (0, 15)
    assert least <= codes.min()
    assert codes.max() <= most
    lost = compensate.loss(weight, codes, found, products)
    assert (lost <= compensate.loss(weight, nearest, found, products)).all()
    assert codes.tobytes() == compensate.chosen(weight, found, products).tobytes()


def test_the_loss_is_what_the_outputs_lose_and_is_much_less_where_inputs_go_together() -> None:
    x = inputs_of(400, 96, 0, 12)
    weight = np.random.default_rng(1).standard_normal((96, 8)).astype(np.float32)
    found = blocks.find(weight)
    products = x.T @ x / np.float32(len(x))
    losses = []
    for codes in (compensate.chosen(weight, found, products), blocks.codes(weight, found)):
        noise = x.astype(np.float64) @ (blocks.values(codes, found) - weight)
        losses.append(compensate.loss(weight, codes, found, products))
        assert losses[-1] == pytest.approx(np.square(noise).mean(axis=0), rel=1e-3)
    assert losses[0].sum() < 0.4 * losses[1].sum()


def test_inputs_that_have_nothing_to_do_with_each_other_keep_the_nearest_codes() -> None:
    weight = np.random.default_rng(2).standard_normal((40, 6)).astype(np.float32)
    found = blocks.find(weight, symmetric=True)
    codes = compensate.chosen(weight, found, np.diag(np.linspace(0.1, 3, 40)).astype(np.float32))
    assert np.array_equal(codes, blocks.codes(weight, found))


def network(calibrator: str, x: np.ndarray) -> tuple[onnx.ModelProto, Ranges, onnx.ModelProto]:
    """A MatMul, and a Gemm that is turned, weighed and read twice: the graph, its ranges, and as it is placed."""
    random = np.random.default_rng(3)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "b"], ["y"], name="second", transB=1, alpha=0.5),
    ]
    stored = [numpy_helper.from_array(random.standard_normal((WIDTH, WIDTH)).astype(np.float32), n) for n in "ab"]
    sides = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH])] for name in "xy"]
    graph = helper.make_graph(nodes, "g", *sides, stored)
    model = prepare(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    rule = LayerRule(precision="int4", type="Linear", weight=WeightQuantizer(calibrator=calibrator))  # type: ignore[arg-type]
    spec = QuantizeSpec(layers=(rule,), batch_size=16)
    plans = plan(list(find_layers(model)), spec)
    ranges, _, ran = calibrate(model, plans, spec, {"x": x})
    assert ran is (calibrator == "gptq")
    return model, ranges, place(model, plans, ranges, PROFILES["onnxruntime-cpu"]).model


def test_a_rule_that_says_so_places_these_codes(tmp_path: Path) -> None:
    x = inputs_of(100, WIDTH, 4, 6)
    noise = {}
    for calibrator in ("max", "gptq"):
        model, ranges, placed = network(calibrator, x)
        store.write(tmp_path / "ranges.npz", "key", Observed(), ranges)
        for name, kept in store.read_ranges(tmp_path / "ranges.npz").blocks.items():
            assert (kept.codes is None) is (calibrator == "max")
            assert kept.codes is None or np.array_equal(kept.codes, ranges.blocks[name].codes)  # type: ignore[arg-type]
        exact, found = (ReferenceEvaluator(item).run(None, {"x": x})[0] for item in (model, unpacked(placed)))
        noise[calibrator] = float(np.square(np.asarray(found) - np.asarray(exact)).sum())
    assert noise["gptq"] < 0.6 * noise["max"]


def unpacked(placed: onnx.ModelProto) -> onnx.ModelProto:
    """The placed graph for onnx's reference, which knows no short last block: weights as what they stand for."""
    made = onnx.ModelProto()
    made.CopyFrom(placed)
    stored = {item.name: numpy_helper.to_array(item).astype(np.float32) for item in placed.graph.initializer}
    del made.graph.node[:]
    for node in placed.graph.node:
        if node.op_type != "DequantizeLinear":
            made.graph.node.append(node)
            continue
        codes, scale, zero = (stored[name] for name in node.input)
        each = [np.repeat(item, 32, axis=0)[: len(codes)] for item in (scale, zero)]
        made.graph.initializer.append(numpy_helper.from_array((codes - each[1]) * each[0], node.output[0]))
    return made


def test_an_input_that_is_not_finite_is_named() -> None:
    x = inputs_of(20, WIDTH, 4, 6)
    x[3, 5] = np.inf
    with np.errstate(all="ignore"), pytest.raises(QuantizeError, match="first: its input holds NaN, infinity"):
        network("gptq", x)
