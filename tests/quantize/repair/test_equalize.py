"""Cross-layer equalisation changes no output in fp32, and nothing that another reads."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core.recipe import LayerRule, QuantizeSpec, RepairSpec, WeightQuantizer
from repo_builder.quantize import plan
from repo_builder.quantize.layers import find_layers
from repo_builder.quantize.placement import profile
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.prepare import prepare
from repo_builder.quantize.ranges import Observed, Ranges
from repo_builder.quantize.repair import State, Work
from repo_builder.quantize.repair.equalize import equalize

PER_TENSOR = LayerRule(precision="int8", weight=WeightQuantizer(per_channel=False))


def equalized(model: onnx.ModelProto, samples: np.ndarray, *rules: LayerRule, relu6: str = "keep"):
    """The prepared graph, what equalize made of it (the same where it found nothing), and what it says."""
    asked = QuantizeSpec(layers=rules or (LayerRule(precision="int8"),), repair=RepairSpec(equalize=True, relu6=relu6))
    ready = prepare(model)
    work = Work(
        plans=plan(list(find_layers(ready)), asked),
        spec=asked,
        samples={"x": samples},
        profile=profile("onnxruntime-cpu"),
        seed=0,
        calibrate=lambda *_: (Ranges(), Observed()),
    )
    found = equalize(State(model=ready, ranges=Ranges(), seen=Observed()), work)
    return ready, (found.state.model if found.state else ready), found.did


def sizes(model: onnx.ModelProto, name: str) -> np.ndarray:
    """The largest weight of each output channel of a layer."""
    index = Index(model)
    node = next(node for node in model.graph.node if node.name == name)
    value = index.value(node.input[1])
    assert value is not None
    return np.abs(value).reshape(len(value), -1).max(axis=1)


def close(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    """Equal but for the rounding of float32."""
    for exact, found in zip(one, other, strict=True):
        np.testing.assert_allclose(found, exact, rtol=2e-4, atol=2e-5 * max(1e-30, np.abs(exact).max()))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(0, 3),
    act=st.sampled_from(["Relu", "LeakyRelu", "Identity", "PRelu"]),
    groups=st.sampled_from([1, 2, 4]),
    turned=st.booleans(),
    pooled=st.booleans(),
    biased=st.booleans(),
)
def test_the_network_computes_what_it_did(outputs, graph_of, seed, scale, act, groups, turned, pooled, biased) -> None:
    draw = np.random.default_rng(seed)
    wide = np.exp(draw.standard_normal(8) * scale)[:, None, None, None]
    stored = {
        "w0": draw.standard_normal((8, 3, 3, 3)) * wide,
        "b0": draw.standard_normal(8) * wide.ravel(),
        "slope": draw.uniform(0.1, 0.5, (8, 1, 1)),
        "w1": draw.standard_normal((4, 8 // groups, 1, 1)),
        "w2": draw.standard_normal((5, 64)) if turned else draw.standard_normal((64, 5)),
        "b2": draw.standard_normal((1, 5)),
        "w3": draw.standard_normal((5, 3)),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w0", *(["b0"] if biased else [])], ["c0"], name="one", pads=[1] * 4),
        node(act, ["c0", *(["slope"] if act == "PRelu" else [])], ["r0"], name="act"),
        node(
            "MaxPool" if pooled else "Identity",
            ["r0"],
            ["p0"],
            name="p",
            **({"kernel_shape": [1, 1]} if pooled else {}),
        ),
        node("Conv", ["p0", "w1"], ["c1"], name="two", group=groups),
        node("Flatten", ["c1"], ["f"], name="flat"),
        node("Gemm", ["f", "w2", "b2"], ["g"], name="three", transB=int(turned), alpha=0.5, beta=2.0),
        node("Relu", ["g"], ["r2"], name="act2"),
        node("MatMul", ["r2", "w3"], ["y"], name="four"),
    ]
    model = graph_of(nodes, stored, ["n", 3, 4, 4])
    samples = draw.standard_normal((5, 3, 4, 4)).astype(np.float32)
    ready, made, did = equalized(model, samples)
    assert did.startswith("3 pairs")
    onnx.checker.check_model(made, full_check=True)
    close(outputs(ready, samples), outputs(made, samples))


def test_channels_end_of_one_size_on_both_sides_and_per_tensor_int8_gains(mobile_net, pictures, repair_of) -> None:
    ready, made, _ = equalized(mobile_net(), pictures)
    unequal, equal = sizes(ready, "depthwise"), sizes(made, "depthwise")
    assert unequal.max() / unequal.min() > 20
    second = next(node.input[1] for node in made.graph.node if node.name == "pointwise")
    behind = np.abs(Index(made).value(second)).max(axis=(0, 2, 3))
    np.testing.assert_allclose(equal, behind, rtol=0.01)
    found = repair_of(mobile_net(scale=3.0), pictures, RepairSpec(equalize=True), PER_TENSOR)
    (record,) = found.records
    assert record.kept
    assert record.after_db > record.before_db + 6


def test_relu6_stays_unless_it_is_asked_away(mobile_net, pictures, outputs) -> None:
    model = mobile_net(act="Clip")
    ready, made, did = equalized(model, pictures)
    assert "2 more go through a Clip and stay" in did
    assert [node.op_type for node in made.graph.node].count("Clip") == 2
    close(outputs(ready, pictures), outputs(made, pictures))
    small = pictures / 1000  # its biases are small: nothing reaches 6 but what the wide channels make
    _, made, did = equalized(model, pictures, relu6="relu")
    assert "2 Clips became Relu" in did
    assert "Clip" not in [node.op_type for node in made.graph.node]
    narrow = mobile_net(act="Clip", scale=0.0)
    ready, made, did = equalized(narrow, small, relu6="relu")
    assert "would have cut 0.00% of the values" in did
    close(outputs(ready, small), outputs(made, small))


def inner_reader(name: str) -> onnx.NodeProto:
    """An If whose branches read a tensor from outside."""
    branch = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_inner"])], "b", [],
        [helper.make_tensor_value_info(f"{name}_inner", TensorProto.FLOAT, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_other"])], "o", [],
        [helper.make_tensor_value_info(f"{name}_other", TensorProto.FLOAT, None)],
    )  # fmt: skip
    return helper.make_node("If", ["yes"], ["seen"], name="if", then_branch=branch, else_branch=other)


@pytest.mark.parametrize("reader", ["node", "output", "subgraph"])
def test_what_others_read_stays(mobile_net, pictures, outputs, reader) -> None:
    model = mobile_net()
    if reader == "node":
        model = mobile_net(more=[helper.make_node("Identity", ["r1"], ["seen"], name="other")])
    elif reader == "output":
        model.graph.output.append(helper.make_tensor_value_info("c1", TensorProto.FLOAT, None))
    else:
        model = mobile_net(more=[inner_reader("r1")])
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    ready, made, did = equalized(model, pictures)
    assert did.startswith("2 pairs")  # stem to depthwise, pointwise to head
    assert {item.name for item in made.graph.output} == {item.name for item in ready.graph.output}
    before, after = outputs(ready, pictures), outputs(made, pictures)
    assert len(before) == 2
    for exact, found in zip(before, after, strict=True):
        axes = tuple(axis for axis in range(exact.ndim) if axis != 1)
        close([exact], [found])  # channel by channel: none has another size than it had
        np.testing.assert_allclose(np.abs(found).max(axis=axes), np.abs(exact).max(axis=axes), rtol=1e-4)


def test_a_weight_that_another_layer_shares_stays_as_it_is_there(graph_of, outputs) -> None:
    draw = np.random.default_rng(3)
    stored = {"w": draw.standard_normal((6, 6)) * np.exp(draw.standard_normal(6)), "v": draw.standard_normal((6, 4))}
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["a"], name="first"),
        node("Relu", ["a"], ["b"], name="act"),
        node("MatMul", ["b", "v"], ["y"], name="second"),
        node("MatMul", ["x", "w"], ["z"], name="tied"),
    ]
    samples = draw.standard_normal((7, 6)).astype(np.float32)
    ready, made, did = equalized(graph_of(nodes, stored, ["n", 6], outputs=["y", "z"]), samples)
    assert did.startswith("1 pair")
    (y, z), (new_y, new_z) = outputs(ready, samples), outputs(made, samples)
    close([y], [new_y])
    np.testing.assert_array_equal(z, new_z)


def test_a_layer_that_runs_twice_is_left_alone(graph_of) -> None:
    draw = np.random.default_rng(3)
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["a"], name="layer"),
        node("Relu", ["a"], ["b"], name="act"),
        node("MatMul", ["b", "w"], ["y"], name="layer#2"),
    ]
    model = graph_of(nodes, {"w": draw.standard_normal((6, 6))}, ["n", 6])
    for item in model.graph.node:  # as exported here: the names are the layers' own
        item.metadata_props.add(key="repo_builder.type", value="Linear")
    samples = draw.standard_normal((7, 6)).astype(np.float32)
    ready, made, did = equalized(model, samples, LayerRule(type="Linear", precision="int8"))
    assert did == "there are no two layers to equalize"
    assert made == ready


def test_channels_of_zeros_subnormals_and_extremes_stay_finite(mobile_net, pictures, outputs) -> None:
    model = mobile_net()
    for item in model.graph.initializer:
        if item.name == "wd":
            value = numpy_helper.to_array(item).copy()
            value[0], value[1], value[2] = 0, 1e-42, 1e30
            item.CopyFrom(numpy_helper.from_array(value, "wd"))
        if item.name == "w1":
            value = numpy_helper.to_array(item).copy()
            value[:, 2], value[:, 3] = value[:, 2] * 1e-30, 0
            item.CopyFrom(numpy_helper.from_array(value, "w1"))
    ready, made, _ = equalized(model, pictures)
    for item in made.graph.initializer:
        assert np.isfinite(numpy_helper.to_array(item)).all()
    close(outputs(ready, pictures), outputs(made, pictures))
    np.testing.assert_array_equal(sizes(made, "depthwise")[0], 0)


def test_layers_that_nobody_wants_in_int8_and_fp16_ones_stay(mobile_net, pictures) -> None:
    for precision, count in (("fp32", "there are no"), ("fp16", "1 pair")):
        rules = LayerRule(precision="int8"), LayerRule(name="depthwise", precision=precision)
        *_, did = equalized(mobile_net(), pictures, *rules)
        # next to fp32 a layer may be equalized, next to fp16 not
        assert did.startswith("3 pairs" if precision == "fp32" else count)
    *_, did = equalized(mobile_net(), pictures, LayerRule(name="head", precision="int8"))
    assert did.startswith("1 pair")
