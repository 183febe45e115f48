"""Constants behind convolutions are folded where that computes the same, and left where it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from repo_builder.quantize.affine import fold_affine  # noqa: E402

N = helper.make_node


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model(nodes: list[onnx.NodeProto], stored: dict[str, Any], outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 5, 5])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(proto: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    """Run a model as it is (onnx's own evaluator cannot do transposed convolutions in groups)."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def folded(proto: onnx.ModelProto) -> list[str]:
    """Fold a copy, hold its outputs against the original's, and return its operators."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    fold_affine(copy)
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(copy, strict_mode=True), full_check=True)
    x = noise(2, 4, 5, 5, seed=9)
    for before, after in zip(*(run(item, x) for item in (proto, copy)), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
    return [node.op_type for node in copy.graph.node]


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(("Conv", "ConvTranspose")),
    group=st.sampled_from((1, 2)),
    bias=st.booleans(),
    steps=st.lists(
        st.tuples(
            st.sampled_from(("Add", "Sub", "Mul", "Div")),
            st.sampled_from(((), (1,), (6, 1, 1), (1, 6, 1, 1))),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_chains_of_constants_fold_into_one_convolution(kind: str, group: int, bias: bool, steps: list[Any]) -> None:
    shape = (6, 4 // group, 3, 3) if kind == "Conv" else (4, 6 // group, 3, 3)
    stored: dict[str, Any] = {"w": noise(*shape), **({"b": noise(6)} if bias else {})}
    nodes, last = [N(kind, ["x", "w", *(["b"] if bias else [])], ["h"], name="conv", group=group)], "h"
    for place, (step, size, turned) in enumerate(steps):
        stored[f"c{place}"] = np.abs(noise(*size, seed=place)) + np.float32(0.5)
        reads = [f"c{place}", last] if turned and step in ("Add", "Mul") else [last, f"c{place}"]
        nodes.append(N(step, reads, [f"t{place}"], name=f"s{place}"))
        last = f"t{place}"
    nodes[-1].output[0] = "y"
    assert folded(model(nodes, stored)) == [kind]


@pytest.mark.parametrize(
    ("constant", "step", "turned"),
    [
        (noise(1, 6, 3, 3), "Add", False),  # one number a pixel
        (noise(3), "Mul", False),  # along the width
        (noise(2, 6, 1, 1), "Add", False),  # one number a sample
        (noise(1, 1, 6, 1, 1), "Add", False),  # of more axes than the convolution makes
        (np.float32(0), "Div", False),
        (np.float32(2), "Sub", True),
        (np.float32(2), "Div", True),
        (np.float64(2).astype(np.float16), "Mul", False),
    ],
)
def test_what_is_no_constant_a_channel_stays(constant: Any, step: str, turned: bool) -> None:
    reads = ["c", "h"] if turned else ["h", "c"]
    nodes = [N("Conv", ["x", "w"], ["h"], name="conv"), N(step, reads, ["y"], name="s")]
    copy = model(nodes, {"w": noise(6, 4, 3, 3), "c": constant})
    fold_affine(copy)
    assert [node.op_type for node in copy.graph.node] == ["Conv", step]


def test_what_others_read_stays_and_shared_weights_are_copied() -> None:
    nodes = [
        N("Conv", ["x", "w"], ["h"], name="one"), N("Mul", ["h", "c"], ["y"], name="s"),
        N("Conv", ["x", "w"], ["z"], name="other"),
    ]  # fmt: skip
    stored = {"w": noise(6, 4, 3, 3), "c": np.float32(2)}
    assert folded(model(nodes, stored, ("y", "z"))) == ["Conv", "Conv"]
    assert folded(model(nodes[:2], stored, ("y", "h"))) == ["Conv", "Mul"]
    body = [
        helper.make_graph([N("Abs", ["h"], [name])], name, [], [helper.make_tensor_value_info(name, 1, None)])
        for name in ("a", "b")
    ]
    branch = N("If", ["yes"], ["z"], name="if", then_branch=body[0], else_branch=body[1])
    assert folded(model([*nodes[:2], branch], {**stored, "yes": np.bool_(True)}, ("y", "z"))) == ["Conv", "Mul", "If"]


def test_a_name_that_a_fold_would_give_may_be_taken() -> None:
    nodes = [N("Conv", ["x", "w"], ["h"], name="conv"), N("Add", ["h", "conv.folded_bias"], ["y"], name="s")]
    assert folded(model(nodes, {"w": noise(6, 4, 3, 3), "conv.folded_bias": noise(6, 1, 1)})) == ["Conv"]
