"""Where -inf stands for a mask that fp16 cannot hold: exact for every score, or not at all."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core.graphs import Graph
from repo_builder.export.masks import LARGEST, as_half, why_no_infinity

NUMBERS = (0.0, -1.0, 3.0, -60_000.0, -1e5, -131_000.0, -2e5, -1e9, float(np.finfo(np.float32).min), -np.inf, 1e6)


def softmax(values: np.ndarray) -> np.ndarray:
    """Return Softmax along the last axis as a runtime computes it, float32."""
    with np.errstate(invalid="ignore", over="ignore"):
        powers = np.exp(values - values.max(-1, keepdims=True), dtype=np.float32)
        return powers / powers.sum(-1, keepdims=True, dtype=np.float32)


@settings(max_examples=200, deadline=None)
@given(
    mask=st.lists(st.lists(st.sampled_from(NUMBERS), min_size=4, max_size=4), min_size=1, max_size=3),
    scores=st.lists(st.sampled_from((0.0, 1.5, -2.0, LARGEST, -LARGEST)), min_size=4, max_size=4),
)
def test_where_infinity_may_stand_softmax_makes_the_same_bits(mask: list[list[float]], scores: list[float]) -> None:
    value = np.asarray(mask, np.float32)
    nodes = [helper.make_node("Add", ["x", "k"], ["c"]), helper.make_node("Softmax", ["c"], ["y"])]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], [numpy_helper.from_array(value, "k")])
    model: onnx.ModelProto = helper.make_model(graph)
    why = why_no_infinity(Graph(model), model.graph.node[0], "k", {"y"}, {})
    infinite = as_half(value).astype(np.float32)
    kept = np.isfinite(infinite)
    if not why:
        x = np.asarray(scores, np.float32)
        with np.errstate(over="ignore"):
            one, other = x + value, x + np.where(kept, value, infinite)
        np.testing.assert_array_equal(softmax(one), softmax(other))
    elif (value <= 3).all() and kept.any(axis=-1).all() and not (~kept & (value > -2e5)).any():
        raise AssertionError(why)  # each row keeps a small number, and what it masks is far below
