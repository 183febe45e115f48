"""Readings of ONNX graphs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core.errors import first_line
from repo_builder.core.graphs import Graph, drop_unused, layer_of, opset, outer_reads, rename


@pytest.fixture
def model() -> onnx.ModelProto:
    """A linear layer whose weight is quantized and turned, behind a quantizer and a Reshape."""
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "scale")
    zero = numpy_helper.from_array(np.array(0, np.int8), "zero")
    pair = ["scale", "zero"]
    nodes = [
        helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(np.array([-1, 4]))),
        helper.make_node("QuantizeLinear", ["x", *pair], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", *pair], ["xd"]),
        helper.make_node("Reshape", ["xd", "shape"], ["xr"]),
        helper.make_node("QuantizeLinear", ["w", *pair], ["wq"]),
        helper.make_node("DequantizeLinear", ["wq", *pair], ["wd"]),
        helper.make_node("Transpose", ["wd"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["xr", "wt"], ["m"], name="head.fc#2"),
        helper.make_node("Relu", ["m"], ["y"], name="act"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [
            scale,
            zero,
            numpy_helper.from_array(np.ones((3, 4), np.float32), "w"),
            numpy_helper.from_array(np.ones(1), "u"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("a", 3), helper.make_opsetid("", 17)])


def test_constants_are_seen_through_quantizers_and_moves(model: onnx.ModelProto) -> None:
    graph = Graph(model)
    matmul, relu = model.graph.node[-2:]
    assert graph.weight(matmul) == "w"
    assert graph.weight(relu) is None
    assert graph.constant_behind("xr") is None
    np.testing.assert_array_equal(graph.value("shape"), [-1, 4])
    assert graph.value("x") is None
    assert [node.op_type for node in graph.consumers["scale"]] == [
        *("QuantizeLinear", "DequantizeLinear", "QuantizeLinear", "DequantizeLinear"),
    ]


def test_what_comes_out_of_a_quantizer_is_seen_through_moves(model: onnx.ModelProto) -> None:
    graph = Graph(model)
    assert {name: graph.dequantized(name) for name in ("x", "xq", "xd", "xr", "wt", "m")} == {
        **{"x": False, "xq": False, "xd": True},
        **{"xr": True, "wt": True, "m": False},
    }


def test_layers_are_named_by_their_nodes(model: onnx.ModelProto) -> None:
    matmul, relu = model.graph.node[-2:]
    assert layer_of(matmul) == "head.fc"
    assert layer_of(relu) is None
    matmul.name = ""
    assert layer_of(matmul) == "m", "a node without a name is known by what it makes"


def test_the_default_opset_is_found_among_others(model: onnx.ModelProto) -> None:
    assert opset(model) == 17
    assert opset(onnx.ModelProto()) == 0


def test_only_what_nobody_reads_is_dropped(model: onnx.ModelProto) -> None:
    drop_unused(model)
    assert [item.name for item in model.graph.initializer] == ["scale", "zero", "w"]


def test_the_first_line_of_an_error_that_says_anything() -> None:
    assert first_line(ValueError("\n  one \ntwo")) == "one"
    assert first_line(ValueError("")) == "ValueError"


def test_what_bodies_read_from_outside_counts_and_is_renamed_with_it() -> None:
    inner = helper.make_graph(
        [helper.make_node("Add", ["own", "deep"], ["sum"])],
        "inner",
        [],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)],
    )
    body = helper.make_graph(
        [
            helper.make_node("Relu", ["outside"], ["own"]),
            helper.make_node("If", ["flag"], ["sum2"], then_branch=inner, else_branch=inner),
        ],
        "body",
        [],
        [helper.make_tensor_value_info("sum2", TensorProto.FLOAT, None)],
        [helper.make_tensor("flag", TensorProto.BOOL, [], [True])],
    )
    node = helper.make_node("If", ["c"], ["y"], name="if", then_branch=body, else_branch=body)
    assert outer_reads(node) == ("outside", "deep")
    stored = [helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0]) for name in ("deep", "unused")]
    infos = [
        helper.make_tensor_value_info(name, kind, [1])
        for name, kind in (("c", TensorProto.BOOL), ("outside", TensorProto.FLOAT), ("y", TensorProto.FLOAT))
    ]
    model = helper.make_model(helper.make_graph([node], "g", infos[:2], infos[2:], stored))
    assert Graph(model).consumers["outside"] == [node]
    drop_unused(model)
    assert [item.name for item in model.graph.initializer] == ["deep"]
    rename(model.graph.node, {"outside": "renamed", "y": "z"})
    assert outer_reads(model.graph.node[0]) == ("renamed", "deep")
    assert list(model.graph.node[0].output) == ["z"]
