"""What no TensorRT takes is told from the graph alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder.compile.tensorrt.refusals import refusals


def model(*nodes: onnx.NodeProto, kind: int = TensorProto.FLOAT, **more: Any) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, kind, ["n", 4]) for name in ("x", "y")]
    graph = helper.make_graph(list(nodes), "g", ends[:1], ends[1:], more.pop("stored", []))
    domains = {node.domain for node in nodes}
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(name, 17 if not name else 3) for name in domains], **more
    )


def test_ordinary_graphs_are_left_to_the_parser(quantized: onnx.ModelProto) -> None:
    assert refusals(quantized) == ()


@pytest.mark.parametrize(
    ("op", "domain", "said"),
    [
        ("DynamicQuantizeLinear", "", "calibrated int8 instead"),
        ("QLinearMatMul", "", "ONNX Runtime's own form"),
        ("SequenceAt", "", "sequences of tensors"),
        ("LinearClassifier", "ai.onnx.ml", "operators of ai.onnx.ml"),
        ("FusedMatMul", "com.microsoft", "operators of com.microsoft"),
    ],
)
def test_a_node_is_named_once_a_kind(op: str, domain: str, said: str) -> None:
    nodes = [helper.make_node(op, ["x"], [name], name=f"the {name}", domain=domain) for name in ("a", "y")]
    (sentence,) = refusals(model(*nodes))
    assert sentence.startswith(f"the node 'the a' ({op}): ")
    assert said in sentence


def test_bodies_are_looked_into_and_functions_of_the_model_are_not_foreign() -> None:
    inner = helper.make_node("Unique", ["x"], ["z"], name="inner")
    body = helper.make_graph([inner], "b", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)])
    stored = [numpy_helper.from_array(np.array(True), "c")]
    node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    assert refusals(model(node, stored=stored)) == ("the node 'inner' (Unique): no implementation",)
    own = helper.make_node("Twice", ["x"], ["y"], domain="mine")
    function = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    assert refusals(model(own, functions=[function])) == ()


def test_types_of_the_ends_are_told() -> None:
    found = refusals(model(helper.make_node("Identity", ["x"], ["y"]), kind=TensorProto.STRING))
    assert found == ("the tensor 'x': strings",)
