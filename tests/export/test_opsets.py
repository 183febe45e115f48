"""A graph in an older operator set computes the same, or is refused by the operator's name."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core.errors import ExportError
from repo_builder.core.graphs import opset
from repo_builder.export.opsets import lowered


def model(*nodes: onnx.NodeProto, out: list[Any], version: int = 18, **constants: Any) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


def node(kind: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, ["y"], name=kind, **attributes)


KINDS = {
    "mean": lambda: model(node("ReduceMean", "x", "axes", keepdims=0), out=["n"], axes=[1, 2]),
    "max over all": lambda: model(node("ReduceMax", "x", keepdims=0), out=[]),
    "split": lambda: model(
        helper.make_node("Split", ["x"], ["a", "b"], axis=2, num_outputs=2), node("Sub", "a", "b"), out=["n", 4, 3]
    ),
    "resize": lambda: model(
        node("Resize", "x", "", "scales", mode="nearest", antialias=0, keep_aspect_ratio_policy="stretch"),
        out=["n", 4, 12],
        scales=np.float32([1, 1, 2]),
    ),
    "reshape": lambda: model(node("Reshape", "x", "to", allowzero=1), out=["n", 24], to=[-1, 24]),
    "pad": lambda: model(node("Pad", "x", "pads"), out=["n", 5, 6], pads=[0, 1, 0, 0, 0, 0]),
}


@pytest.mark.parametrize("version", [13, 17])
@pytest.mark.parametrize("kind", KINDS)
def test_the_older_graph_computes_the_same(run, kind: str, version: int) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4, 6)).astype(np.float32)
    expected = run(KINDS[kind](), x=x)["y"]
    older = lowered(KINDS[kind](), version)
    assert opset(older) == version
    onnx.checker.check_model(older, full_check=True)
    np.testing.assert_array_equal(run(older, x=x)["y"], expected)


REFUSED = {
    r"Mish \(Mish\) has no form before opset 18": lambda: (model(node("Mish", "x"), out=["n", 4, 6]), 17),
    r"LayerNormalization \(LayerNormalization\) has no form before opset 17": lambda: (
        model(node("LayerNormalization", "x", "s"), out=["n", 4, 6], s=np.ones(6, np.float32)),
        16,
    ),
    r"Split \(Split\) into parts that may differ": lambda: (
        model(helper.make_node("Split", ["x"], ["y", "b"], name="Split", num_outputs=2), out=["n", 4, 6]),
        17,
    ),
    r"Resize \(Resize\) with antialias has no form at opset 17": lambda: (
        model(
            node("Resize", "x", "", "scales", mode="linear", antialias=1),
            out=["n", 4, 3],
            scales=np.float32([1, 1, 0.5]),
        ),
        17,
    ),
    r"ReduceMean \(ReduceMean\) over axes that are computed": lambda: (
        model(
            helper.make_node("Shape", ["x"], ["axes"], start=3), node("ReduceMean", "x", "axes"), out=["n", 4, 6]
        ),
        17,
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_has_no_older_form_is_named(message: str) -> None:
    graph, version = REFUSED[message]()
    with pytest.raises(ExportError, match=message):
        lowered(graph, version)


def test_a_graph_of_that_set_stays_as_it_is() -> None:
    graph = KINDS["pad"]()
    assert lowered(graph, 18) is graph
    assert lowered(graph, 20) is graph
