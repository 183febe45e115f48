"""A graph from anywhere, made ready."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, version_converter

from repo_builder.core.errors import QuantizeError
from repo_builder.core.graphs import TYPE
from repo_builder.quantize.prepare import current, prepare, unfolded

NORM = ("gamma", "beta", "mean", "variance")


def statistics(channels: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(5)
    values = (draw.standard_normal(channels), draw.standard_normal(channels), draw.standard_normal(channels))
    return dict(zip(NORM, (item.astype(np.float32) for item in (*values, draw.random(channels) + 0.2)), strict=True))


def norm(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("BatchNormalization", [source, *NORM], [target], name="norm")


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norm_is_folded_into_convolutions_in_groups(graph_of, run, rank: int, kind: str, bias: bool) -> None:
    draw = np.random.default_rng(0)
    shape = (4, 3) if kind == "ConvTranspose" else (6, 2)
    stored = {"w": draw.standard_normal((*shape, *[3] * rank)), **({"b": draw.standard_normal(6)} if bias else {})}
    stored = {name: value.astype(np.float32) for name, value in stored.items()} | statistics(6)
    nodes = [helper.make_node(kind, ["x", "w", *(["b"] if bias else [])], ["h"], name="c", group=2), norm("h", "n")]
    model = graph_of([*nodes, helper.make_node("Relu", ["n"], ["y"], name="r")], stored, ["n", 4, 9, 8, 7][: rank + 2])
    samples = draw.standard_normal((20, 4, 9, 8, 7)[: rank + 2]).astype(np.float32)
    prepared = prepare(model)
    assert [node.op_type for node in prepared.graph.node] == [kind, "Relu"]
    assert unfolded(prepared) == ()
    np.testing.assert_allclose(run(prepared, samples), run(model, samples), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("turned", [0, 1])
def test_batch_norm_is_folded_into_linear_layers(graph_of, run, matrix, rows, turned: int) -> None:
    weight = np.ascontiguousarray(matrix.T) if turned else matrix
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h"], name="fc", transB=turned), norm("h", "y")]
    model = graph_of(nodes, {"w": weight, **statistics(4)}, ["n", 6])
    prepared = prepare(model)
    assert [node.op_type for node in prepared.graph.node] == ["Gemm"]
    np.testing.assert_allclose(run(prepared, rows), run(model, rows), rtol=1e-4, atol=1e-5)


def other_readers() -> dict[str, list[onnx.NodeProto]]:
    conv = helper.make_node("Conv", ["x", "w"], ["h"], name="c")
    body = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["inside"])],
        "body",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)],
    )
    return {
        "a sum": [conv, norm("h", "n"), helper.make_node("Add", ["n", "h"], ["y"], name="sum")],
        "a branch": [
            conv,
            norm("h", "n"),
            helper.make_node("If", ["yes"], ["i"], name="if", then_branch=body, else_branch=body),
            helper.make_node("Add", ["n", "i"], ["y"], name="sum"),
        ],
        "a second layer with its weight": [
            conv,
            norm("h", "n"),
            helper.make_node("Conv", ["n", "w"], ["y"], name="d"),
        ],
    }


@pytest.mark.parametrize("case", other_readers())
def test_batch_norm_stays_and_is_named_where_its_layer_is_not_its_own(graph_of, run, case: str) -> None:
    stored = {"w": np.eye(3, dtype=np.float32)[:, :, None, None] * 2, "yes": np.array(True), **statistics(3)}
    model = graph_of(other_readers()[case], stored, ["n", 3, 4, 4])
    prepared = prepare(model)
    assert unfolded(prepared) == ("norm (c is read or shared by others, too)",)
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(prepared, x), run(model, x))


def test_batch_norm_behind_something_else_is_named(graph_of) -> None:
    model = graph_of([helper.make_node("Relu", ["x"], ["h"], name="r"), norm("h", "y")], statistics(3), ["n", 3])
    assert unfolded(prepare(model)) == ("norm (behind Relu)",)


def test_preparing_again_changes_nothing(small) -> None:
    once = prepare(small)
    assert prepare(once).SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


def test_names_from_here_stay_and_others_are_made_distinct(graph_of, matrix) -> None:
    square = matrix @ matrix.T
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("MatMul", ["h", "a"], ["i"], name="same#2"),
        helper.make_node("MatMul", ["i", "a"], ["j"], name="same#2"),
        helper.make_node("MatMul", ["j", "a"], ["y"], name="fc#2"),
    ]
    nodes[3].metadata_props.add(key=TYPE, value="Linear")
    names = [node.name for node in prepare(graph_of(nodes, {"a": square}, ["n", 6])).graph.node]
    assert names == ["MatMul_0", "same_2", "same_2_2", "fc#2"]


def test_bodies_keep_what_they_read_from_outside(graph_of, run, matrix) -> None:
    square = matrix @ matrix.T
    branches = {
        name: helper.make_graph(
            [helper.make_node("MatMul", ["x", weight], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name, weight in (("then", "w"), ("else", "v"))
    }
    nodes = [
        helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(square * 2)),
        helper.make_node("ReduceSum", ["x"], ["s"], name="total", keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"], name="positive"),
        helper.make_node("If", ["c"], ["y"], name="if", then_branch=branches["then"], else_branch=branches["else"]),
    ]
    model = graph_of(nodes, {"w": square, "zero": np.float32(0)}, ["n", 6])
    prepared = prepare(model)
    for sign in (1, -1):
        x = np.full((2, 6), sign, np.float32)
        np.testing.assert_array_equal(run(prepared, x), run(model, x))


@pytest.mark.parametrize("version", [9, 11, 13, 18, 21])
def test_old_opsets_are_converted_and_new_ones_kept(graph_of, run, matrix, rows, version: int) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
        helper.make_node("Softmax", ["h"], ["y"], name="s", axis=1),
    ]
    model = graph_of(nodes, {"w": matrix}, ["n", 6], version)
    prepared = prepare(model)
    assert prepared.opset_import[0].version == max(version, 13)
    np.testing.assert_allclose(run(prepared, rows), run(model, rows), rtol=1e-5)


def test_an_opset_that_cannot_be_converted_is_one_sentence(graph_of) -> None:
    model = graph_of([helper.make_node("Nonsense", ["x"], ["y"], name="odd")], {}, ["n", 6], version=8)
    with pytest.raises(QuantizeError, match="the model has opset 8, and converting it to 13 fails") as raised:
        prepare(model)
    assert "\n" not in str(raised.value)


def test_a_model_that_is_quantized_already_is_refused_with_a_way_out(small, images, lower) -> None:
    with pytest.raises(QuantizeError, match=r"quantized already.*leave out \[\[quantize\.layers\]\]"):
        prepare(lower(small, images).placed.model)


def test_initializers_that_are_listed_as_inputs_are_none(graph_of, matrix) -> None:
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], {"w": matrix}, ["n", 6])
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 4]))
    model.ir_version = 3
    assert [item.name for item in prepare(model).graph.input] == ["x"]


def test_a_newer_opset_is_found_without_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter takes no model of 2 GB: what it is given holds no weight, and what comes back holds all of them."""
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    sides = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64])] for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], "fc")], "g", *sides, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    convert, sizes = version_converter.convert_version, []

    def watched(light: onnx.ModelProto, version: int) -> onnx.ModelProto:
        sizes.append(light.ByteSize())
        return convert(light, version)

    monkeypatch.setattr(version_converter, "convert_version", watched)
    made = current(model, 21)
    assert sizes[0] < 1024
    assert [item.name for item in made.graph.input] == ["x"]
    assert list(made.graph.initializer) == [weight]
    onnx.checker.check_model(made, full_check=True)
