"""What the layers of a graph are called in rules."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core.errors import RecipeError
from repo_builder.core.graphs import TYPE
from repo_builder.core.recipe import LayerRule, QuantizeSpec
from repo_builder.quantize import plan
from repo_builder.quantize.layers import find_layers
from repo_builder.quantize.prepare import prepare


def chosen(model: onnx.ModelProto, *rules: LayerRule) -> dict[str, str]:
    plans = plan(list(find_layers(prepare(model))), QuantizeSpec(layers=rules))
    return {item.name: item.type for item in plans if item.precision == "int8"}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (LayerRule(type="Conv2d", precision="int8"), ["stem", "branch"]),
        (LayerRule(type="Conv", precision="int8"), ["stem", "branch"]),
        (LayerRule(type="Gemm", precision="int8"), ["head"]),
        (LayerRule(type="Linear", precision="int8"), ["head"]),
        (LayerRule(type="MaxPool", precision="int8"), ["pool"]),
        (LayerRule(type="MaxPool2d", precision="int8"), ["pool"]),
        (LayerRule(type="Add", precision="int8"), ["sum"]),
        (LayerRule(name="sum", precision="int8"), ["sum"]),
        (LayerRule(precision="int8"), ["stem", "branch", "head"]),
    ],
)
def test_rules_say_torch_s_types_or_onnx_s(small, rule: LayerRule, expected: list[str]) -> None:
    assert list(chosen(small, rule)) == expected


def test_a_name_that_is_nearly_right_is_suggested(small) -> None:
    with pytest.raises(RecipeError, match="did you mean 'branch'"):
        chosen(small, LayerRule(name="branches", precision="int8"))


def weights(matrix: np.ndarray) -> dict[str, tuple[list[onnx.NodeProto], str, dict[str, np.ndarray]]]:
    """The ways in which a constant weight may come: nodes before the layer, the tensor, what is stored."""
    make = helper.make_node
    return {
        "stored": ([], "w", {"w": matrix}),
        "turned": ([make("Transpose", ["w"], ["t"], name="t", perm=[1, 0])], "t", {"w": matrix.T.copy()}),
        "a Constant": ([make("Constant", [], ["w"], value=numpy_helper.from_array(matrix))], "w", {}),
        "cast": ([make("Cast", ["w"], ["f"], name="f", to=TensorProto.FLOAT)], "f", {"w": matrix.astype(np.float16)}),
        "computed": ([make("Mul", ["w", "g"], ["wg"], name="m")], "wg", {"w": matrix, "g": np.float32([2])}),
    }


@pytest.mark.parametrize("form", ["stored", "turned", "a Constant", "cast", "computed"])
def test_a_layer_with_a_constant_weight_is_one_however_the_weight_comes(
    graph_of, lower, run, matrix, rows, form: str
) -> None:
    before, weight, stored = weights(matrix)[form]
    model = graph_of([*before, helper.make_node("MatMul", ["x", weight], ["y"], name="fc")], stored, ["n", 6])
    made = lower(model, rows)
    assert [(row.name, row.type, row.precision) for row in made.rows] == [("fc", "Linear", "int8")]
    assert made.ranges.weights["fc"].amax.shape == (4,)
    np.testing.assert_allclose(run(made.placed.model, rows), run(model, rows), atol=0.3)


def test_a_matmul_of_two_activations_is_int8_where_a_rule_asks_for_its_type(graph_of, lower, rows) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], name="t", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"], name="square"),
    ]
    model = graph_of(nodes, {}, [8, 6])
    assert chosen(model, LayerRule(type="MatMul", precision="int8")) == {"square": "MatMul"}
    made = lower(model, rows[:8], LayerRule(type="MatMul", precision="int8"), target="onnxruntime-cpu")
    assert [(row.asked, row.precision) for row in made.rows] == [("int8", "int8")]
    with pytest.raises(RecipeError, match="cannot be given a precision"):
        chosen(model, LayerRule(precision="int8"))


def test_an_add_of_a_constant_is_no_residual_sum(graph_of, matrix) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
        helper.make_node("Add", ["h", "b"], ["y"], name="bias"),
    ]
    model = graph_of(nodes, {"w": matrix, "b": np.ones(4, np.float32)}, ["n", 6])
    with pytest.raises(RecipeError, match="Add"):
        chosen(model, LayerRule(type="Add", precision="int8"))


def test_a_layer_that_runs_twice_is_listed_once_under_its_type_in_torch(graph_of, matrix) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="fc#2"),
    ]
    for node in nodes:
        node.metadata_props.add(key=TYPE, value="MyLinear")
    model = graph_of(nodes, {"w": matrix @ matrix.T}, ["n", 6])
    assert list(find_layers(prepare(model))) == [("fc", "Linear", "MatMul", "MyLinear")]
    assert chosen(model, LayerRule(type="MyLinear", precision="int8")) == {"fc": "Linear"}
