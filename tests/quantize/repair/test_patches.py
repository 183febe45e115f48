"""Rows of a layer's input times its weight are its output."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from repo_builder.core.recipe import LayerRule, QuantizeSpec
from repo_builder.quantize import plan
from repo_builder.quantize.layers import find_layers
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.prepare import prepare
from repo_builder.quantize.repair.linear import layers
from repo_builder.quantize.repair.patches import patches


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    groups=st.sampled_from([1, 2, 4]),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.sampled_from([None, [1, 0, 2, 1], "SAME_UPPER", "SAME_LOWER", "VALID"]),
)
def test_of_a_convolution(outputs, graph_of, seed, groups, strides, dilations, pads) -> None:
    draw = np.random.default_rng(seed)
    weight = draw.standard_normal((8, 4 // groups, 3, 2))
    named = isinstance(pads, str)
    if named and pads.startswith("SAME"):
        dilations = (1, 1)  # ONNX Runtime pads others by a rule of its own
    more = {"auto_pad": pads} if named else {"pads": pads or [0] * 4}
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], name="c", group=groups, strides=strides, dilations=dilations, **more
    )
    model = prepare(graph_of([node], {"w": weight}, ["n", 4, 9, 8]))
    index = Index(model)
    (layer,) = layers(
        index, plan(list(find_layers(model)), QuantizeSpec(layers=(LayerRule(precision="int8"),)))
    ).values()
    values = draw.standard_normal((3, 4, 9, 8)).astype(np.float32)
    rows = patches(layer, values, 10**6, draw)
    made = np.einsum("gnk,gok->ngo", rows, layer.rows(layer.weight)).reshape(rows.shape[1], -1)
    exact = np.moveaxis(outputs(model, values)[0], 1, -1).reshape(-1, 8)
    np.testing.assert_allclose(made, exact, rtol=1e-4, atol=1e-4)
    few = patches(layer, values, 5, np.random.default_rng(0))
    assert few.shape[1] == min(5, rows.shape[1])
    assert all((rows == few[:, place : place + 1]).all(axis=(0, 2)).any() for place in range(few.shape[1]))


def test_of_a_linear_layer(graph_of) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 4))
    model = prepare(graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": weight}, ["n", 3, 6]))
    plans = plan(list(find_layers(model)), QuantizeSpec(layers=(LayerRule(precision="int8"),)))
    (layer,) = layers(Index(model), plans).values()
    values = np.arange(36, dtype=np.float32).reshape(2, 3, 6)
    np.testing.assert_array_equal(patches(layer, values, 100, np.random.default_rng(0))[0], values.reshape(6, 6))
    np.testing.assert_array_equal(layer.stored(layer.rows(layer.weight)), layer.weight)
