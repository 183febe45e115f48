from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from repo_builder.core.recipe import LayerRule
from repo_builder.quantize.placement import PROFILES
from repo_builder.quantize.placement.widen import filled, fitted, widened
from repo_builder.quantize.prepare import prepare

N = helper.make_node
GATES = ("none", "squeeze", "sum", "shared")
ACTIVATIONS = ("Relu", "HardSwish", "Clip", "none")


def network(channels: int, *, gate: str, activation: str, ends: str = "Conv", seed: int = 0) -> onnx.ModelProto:
    """Return 1×1 → depthwise → 1×1 convolutions as MobileNets have them, with what stands between them."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    stored = {"wide": draw(channels, 4, 1, 1), "wide_bias": draw(channels), "deep": draw(channels, 1, 3, 3)}
    stored |= {
        "deep_bias": draw(channels),
        "narrow": draw(6, channels, 1, 1),
        "low": np.float32(0),
        "six": np.float32(6),
    }
    nodes = [N("Conv", ["x", "wide", "wide_bias"], ["a"], "wide")]
    limits = {"Clip": ["low", "six"]}.get(activation, [])
    nodes += [] if activation == "none" else [N(activation, ["a", *limits], ["b"], "act")]
    before = "a" if activation == "none" else "b"
    nodes.append(N("Conv", [before, "deep", "deep_bias"], ["c"], "deep", group=channels, pads=[1, 1, 1, 1]))
    behind = "c"
    if gate == "squeeze":
        stored |= {"down": draw(3, channels, 1, 1), "up": draw(channels, 3, 1, 1), "up_bias": draw(channels)}
        stored["down_bias"] = np.full(3, 9, np.float32)
        nodes += [N("GlobalAveragePool", ["c"], ["p"], "pool"), N("Conv", ["p", "down", "down_bias"], ["d"], "down")]
        nodes += [N("Relu", ["d"], ["e"], "relu"), N("Conv", ["e", "up", "up_bias"], ["f"], "up")]
        nodes += [N("HardSigmoid", ["f"], ["g"], "gate"), N("Mul", ["c", "g"], ["h"], "scaled")]
        behind = "h"
    elif gate == "sum":
        nodes.append(N("Add", [before, "c"], ["h"], "sum"))
        behind = "h"
    elif gate == "shared":  # another convolution with the same weight
        stored["deep_again"] = stored["deep"]
        nodes += [N("Conv", ["c", "deep"], ["h"], "again", group=channels, pads=[1, 1, 1, 1])]
        behind = "h"
    last = {"Conv": N("Conv", [behind, "narrow"], ["y"], "narrow"), "Identity": N("Identity", [behind], ["y"], "end")}
    nodes.append(last[ends])
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4, 6, 6])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    return prepare(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def groups(model: onnx.ModelProto) -> list[int]:
    found = [onnx.helper.get_attribute_value(item) for node in model.graph.node for item in node.attribute
             if item.name == "group"]  # fmt: skip
    return [item for item in found if item > 1]


@given(
    channels=st.integers(2, 40), gate=st.sampled_from(GATES), activation=st.sampled_from(ACTIVATIONS),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=12, deadline=None)
def test_zeros_change_nothing(kit, channels, gate, activation, seed):
    feeds = {"x": np.random.default_rng(seed).standard_normal((2, 4, 6, 6)).astype(np.float32)}
    placed = kit.placed(network(channels, gate=gate, activation=activation, seed=seed), feeds).model
    before = placed.SerializeToString(deterministic=True)
    wide = widened(placed, 16)
    assert placed.SerializeToString(deterministic=True) == before
    assert all(item % 16 == 0 for item in groups(wide))
    onnx.checker.check_model(wide, full_check=True)
    for optimize in (False, True):
        assert np.array_equal(*(kit.run(item, feeds, optimize=optimize)[0] for item in (placed, wide)))


def test_the_runtime_keeps_its_int8_operators(kit, tmp_path):
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)}
    placed = kit.placed(network(24, gate="squeeze", activation="HardSwish"), feeds).model
    found = [sorted(kit.operators(item, feeds, tmp_path)) for item in (placed, widened(placed, 16))]
    assert found[0] == found[1]
    assert found[0].count("QLinearConv") == 5


@pytest.mark.parametrize(
    ("ends", "rules"),
    [
        ("Identity", [LayerRule(precision="int8")]),  # the channels leave the graph
        ("Conv", [LayerRule(precision="int8"), LayerRule(name="deep", precision="fp32")]),  # no int8 depthwise
    ],
)
def test_what_cannot_or_need_not_be_wider_stays(kit, ends, rules):
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)}
    placed = kit.placed(network(24, gate="none", activation="Relu", ends=ends), feeds, *rules).model
    assert widened(placed, 16).SerializeToString(deterministic=True) == placed.SerializeToString(deterministic=True)


def test_a_float_convolution_that_is_guarded_is_as_wide_as_its_neighbours(kit):
    feeds = {"x": kit.noise(2, 4, 6, 6)}
    rules = (LayerRule(type="*", precision="int8"), LayerRule(name="again", precision="fp32"))
    placed = kit.placed(network(24, gate="shared", activation="Relu"), feeds, *rules).model
    assert "Shape" in [node.op_type for node in placed.graph.node], "the guard"
    wide = widened(placed, 16)
    assert groups(wide) == [32, 32]
    for optimize in (False, True):
        assert np.array_equal(*(kit.run(item, feeds, optimize=optimize)[0] for item in (placed, wide)))


def test_a_multiple_stays_as_it_is(kit):
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)}
    placed = kit.placed(network(32, gate="squeeze", activation="Relu"), feeds).model
    assert widened(placed, 16) == placed


def images(kit, channels: int, outputs: int, kernel: int, *, extra: bool = False) -> tuple[onnx.ModelProto, dict]:
    """Return a placed convolution of a network's input, and what it was calibrated on."""
    weight = kit.noise(outputs, channels, kernel, kernel)
    nodes = [N("Conv", ["x", "w"], ["c"], "a", pads=[kernel // 2] * 4), N("Relu", ["c"], ["r"], "r")]
    nodes.append(N("Conv", ["r", "v"], ["y"], "b"))
    stored = {"w": weight, "v": kit.noise(16, outputs, 1, 1)}
    if extra:  # two more of the same input, one of the same weight, and one of a small network's own
        stored["u"] = kit.noise(16, channels, 1, 1)
        nodes += [N("Conv", ["x", "w"], ["z"], "again"), N("Conv", ["x", "u"], ["q"], "one")]
    model = kit.model(nodes, stored, {"x": ["n", channels, 9, 9]}, ("y", "z", "q") if extra else ("y",))
    feeds = {"x": kit.noise(2, channels, 9, 9) + np.float32(1)}  # a zero point of its own
    return kit.placed(prepare(model), feeds).model, feeds


@pytest.mark.parametrize(("channels", "outputs", "kernel"), [(3, 16, 3), (1, 32, 5), (2, 16, 1), (6, 16, 3)])
def test_images_with_channels_of_zeros_give_the_same(kit, tmp_path, channels, outputs, kernel):
    placed, feeds = images(kit, channels, outputs, kernel, extra=True)
    before = placed.SerializeToString(deterministic=True)
    wide = fitted(placed, PROFILES["onnxruntime-cpu"])
    assert placed.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(wide, full_check=True)
    assert [node.op_type for node in wide.graph.node].count("Pad") == 1
    for optimize in (False, True):
        for left, right in zip(*(kit.run(item, feeds, optimize=optimize) for item in (placed, wide)), strict=True):
            assert np.array_equal(left, right)
    kernels = [sorted(kit.operators(item, feeds, tmp_path)) for item in (placed, wide)]
    assert [item for item in kernels[1] if item != "Pad"] == kernels[0]


@pytest.mark.parametrize(("channels", "outputs", "kernel"), [(4, 16, 3), (3, 15, 3), (3, 16, 7)])
def test_images_that_gain_nothing_by_it_stay(kit, channels, outputs, kernel):
    placed, _ = images(kit, channels, outputs, kernel)
    assert filled(placed, 4) == placed


def test_only_the_networks_input_is_filled(kit):
    inner = network(6, gate="none", activation="Relu")  # 6 channels in the middle
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)}
    placed = kit.placed(inner, feeds).model
    assert filled(placed, 4) == placed
