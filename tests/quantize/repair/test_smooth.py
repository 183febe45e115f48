"""Smoothing changes no output in fp32, and nothing that others read of a norm."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from repo_builder.core.recipe import LayerRule, QuantizeSpec, RepairSpec
from repo_builder.quantize import plan
from repo_builder.quantize.layers import find_layers
from repo_builder.quantize.placement import profile
from repo_builder.quantize.prepare import prepare
from repo_builder.quantize.ranges import Observed, Ranges
from repo_builder.quantize.repair import State, Work
from repo_builder.quantize.repair.smooth import smooth

WIDTH = 16
LINEAR = LayerRule(type="Linear", precision="int8")


def block(graph_of, seed: int, *, post: bool, small_steps: bool = False, outliers: float = 50.0) -> onnx.ModelProto:
    """A norm with outliers, two linear layers that read it and, behind a post-norm, the sum that does, too."""
    draw = np.random.default_rng(seed)
    gamma = np.ones(WIDTH)
    gamma[:2] = outliers
    stored = {
        "gamma": gamma,
        "beta": draw.standard_normal(WIDTH) * gamma,
        "q": draw.standard_normal((WIDTH, WIDTH)) / 4,
        "k": draw.standard_normal((24, WIDTH)) / 4,
        "kb": draw.standard_normal(24),
        "o": draw.standard_normal((24, WIDTH)) / 4,
        "eps": np.float32(1e-5),
    }
    node = helper.make_node
    norm = [node("LayerNormalization", ["x", "gamma", "beta"], ["n"], name="norm")]
    if small_steps:
        norm = [
            node("ReduceMean", ["x"], ["m"], axes=[-1], name="mean"),
            node("Sub", ["x", "m"], ["d"], name="centred"),
            node("Mul", ["d", "d"], ["dd"], name="squared"),
            node("ReduceMean", ["dd"], ["v"], axes=[-1], name="variance"),
            node("Add", ["v", "eps"], ["ve"], name="more"),
            node("Sqrt", ["ve"], ["s"], name="deviation"),
            node("Div", ["d", "s"], ["h"], name="unit"),
            node("Mul", ["gamma", "h"], ["g"], name="scaled"),
            node("Add", ["g", "beta"], ["n"], name="norm"),
        ]
    nodes = [
        *norm,
        node("MatMul", ["n", "q"], ["a"], name="query"),
        node("Gemm", ["n", "k", "kb"], ["b"], name="key", transB=1),
        node("MatMul", ["b", "o"], ["c"], name="out"),
        node("Add", ["a", "c"], ["e"], name="sum"),
        node("Add", ["e", "n" if post else "a"], ["y"], name="residual"),
    ]
    return graph_of(nodes, stored, ["n", WIDTH])


def smoothed(model: onnx.ModelProto, samples: np.ndarray, alpha: float):
    asked = QuantizeSpec(layers=(LINEAR,), repair=RepairSpec(smooth=alpha))
    ready = prepare(model)
    work = Work(
        plans=plan(list(find_layers(ready)), asked),
        spec=asked,
        samples={"x": samples},
        profile=profile("onnxruntime-cpu"),
        seed=0,
        calibrate=lambda *_: (Ranges(), Observed()),
    )
    found = smooth(State(model=ready, ranges=Ranges(), seen=Observed()), work)
    return ready, (found.state.model if found.state else ready), found.did


def rows(seed: int = 0, count: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    alpha=st.floats(0, 1),
    post=st.booleans(),
    small_steps=st.booleans(),
    outliers=st.floats(-100, 100),
)
def test_the_network_computes_what_it_did(graph_of, outputs, seed, alpha, post, small_steps, outliers) -> None:
    model = block(graph_of, seed, post=post, small_steps=small_steps, outliers=outliers)
    samples = rows(seed)
    ready, made, did = smoothed(model, samples, alpha)
    assert did.startswith("1 norms") or "1 everywhere" in did
    onnx.checker.check_model(made, full_check=True)
    (exact,), (found,) = outputs(ready, samples), outputs(made, samples)
    np.testing.assert_allclose(found, exact, rtol=2e-4, atol=2e-5 * np.abs(exact).max())


@pytest.mark.parametrize("small_steps", [False, True])
def test_a_norm_that_linear_layers_alone_read_takes_the_factors_itself(graph_of, small_steps) -> None:
    ready, made, did = smoothed(block(graph_of, 1, post=False, small_steps=small_steps), rows(), 0.5)
    assert "1 of them in the norm itself" in did
    assert [node.op_type for node in made.graph.node] == [node.op_type for node in ready.graph.node]


def test_what_else_reads_the_norm_reads_what_it_did_to_the_bit(graph_of, outputs) -> None:
    model = block(graph_of, 1, post=True)
    model.graph.output.append(helper.make_tensor_value_info("n", 1, None))
    ready, made, did = smoothed(model, rows(), 0.5)
    assert "by a product before the linear layers" in did
    np.testing.assert_array_equal(outputs(ready, rows(), ["n"])[0], outputs(made, rows(), ["n"])[0])
    residual = next(node for node in made.graph.node if node.name == "residual")
    assert "n" in residual.input


def test_zero_channels_and_extremes_keep_their_size(graph_of, outputs) -> None:
    model = block(graph_of, 1, post=False)
    for item in model.graph.initializer:
        if item.name in ("gamma", "beta"):
            value = onnx.numpy_helper.to_array(item).copy()
            value[3], value[4], value[5] = 0, 1e-42, 1e36
            item.CopyFrom(onnx.numpy_helper.from_array(value, item.name))
        if item.name == "q":
            value = onnx.numpy_helper.to_array(item).copy()
            value[5], value[6] = value[5] * 1e-36, 0
            item.CopyFrom(onnx.numpy_helper.from_array(value, item.name))
        if item.name == "k":
            value = onnx.numpy_helper.to_array(item).copy()
            value[:, 5], value[:, 6] = value[:, 5] * 1e-36, 0
            item.CopyFrom(onnx.numpy_helper.from_array(value, item.name))
    ready, made, _ = smoothed(model, rows(), 0.7)
    for item in made.graph.initializer:
        assert np.isfinite(onnx.numpy_helper.to_array(item)).all()
    (exact,), (found,) = outputs(ready, rows()), outputs(made, rows())
    np.testing.assert_allclose(found, exact, rtol=2e-4, atol=2e-5 * np.abs(exact).max())


def test_int8_keeps_more_of_a_block_with_outliers(graph_of, repair_of) -> None:
    model = block(graph_of, 2, post=False, outliers=200.0)
    found = repair_of(model, rows(), RepairSpec(smooth=0.5), LINEAR)
    (record,) = found.records
    assert record.kept
    assert record.after_db > record.before_db + 3


def test_without_a_norm_it_says_so(mobile_net, pictures, repair_of) -> None:
    found = repair_of(mobile_net(), pictures, RepairSpec(smooth=0.5))
    assert found.model == found.ready
    assert str(found.records[0]) == "smooth: no norm feeds an int8 linear layer"
