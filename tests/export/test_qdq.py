"""The Q/DQ linter finds each thing that TensorRT would refuse, in any file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core.errors import ExportError
from repo_builder.export import qdq

Edit = Callable[[onnx.ModelProto], None]


def pair(tensor: str, name: str, scale: np.ndarray, axis: int | None = None) -> tuple[list, list, str]:
    attributes = {} if axis is None else {"axis": axis}
    constants = [
        numpy_helper.from_array(scale, f"{name}_scale"),
        numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{name}_zero"),
    ]
    inputs = [f"{name}_scale", f"{name}_zero"]
    nodes = [
        helper.make_node("QuantizeLinear", [tensor, *inputs], [f"{name}_q"], name=f"{name}/Q", **attributes),
        helper.make_node("DequantizeLinear", [f"{name}_q", *inputs], [f"{name}_dq"], name=f"{name}/DQ", **attributes),
    ]
    return nodes, constants, f"{name}_dq"


@pytest.fixture
def model() -> onnx.ModelProto:
    """One int8 convolution and one fp32 linear layer."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    into, first, x = pair("x", "in", np.array(0.1, np.float32))
    onto, second, w = pair("weight", "w", np.full(4, 0.01, np.float32), 0)
    nodes = [
        *into,
        *onto,
        helper.make_node("Conv", [x, w], ["c"], name="conv"),
        helper.make_node("Flatten", ["c"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "matrix"], ["y"], name="fc"),
    ]
    stored = [
        *first,
        *second,
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(rng.standard_normal((16, 2)).astype(np.float32), "matrix"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        stored,
    )
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(result, full_check=True)
    return result


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(item for item in model.graph.node if item.name == name)


def replace(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    stored = next(item for item in model.graph.initializer if item.name == name)
    stored.CopyFrom(numpy_helper.from_array(value, name))


def double(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2), "d"))


def to_double(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Cast", ["x"], ["xx"], name="cast", to=TensorProto.DOUBLE))


def two_inputs(model: onnx.ModelProto) -> None:
    del node(model, "in/Q").input[2:]


def computed(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Abs", ["in_scale"], ["abs"], name="abs"))
    node(model, "in/Q").input[1] = "abs"


def no_axis(model: onnx.ModelProto) -> None:
    del node(model, "w/DQ").attribute[:]


def stored_integers(model: onnx.ModelProto) -> None:
    replace(model, "weight", np.zeros((4, 3, 3, 3), np.int8))
    node(model, "w/DQ").input[0] = "weight"


def other_scale(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.2, np.float32), "other"))
    node(model, "in/DQ").input[1] = "other"


def old(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 12


EDITS: dict[str, tuple[Edit, str, str]] = {
    "double": (double, "d", "a double tensor"),
    "cast to double": (to_double, "cast", "a double tensor"),
    "two inputs": (two_inputs, "in/Q", "has no zero point"),
    "computed scale": (computed, "in/Q", "computed, not constant"),
    "fp64 scale": (lambda m: replace(m, "in_scale", np.array(0.1)), "in/Q", "its scale is float64"),
    "fp16 scale": (lambda m: replace(m, "in_scale", np.array(0.1, np.float16)), "in/Q", "its scale is float16"),
    "scale 0": (lambda m: replace(m, "w_scale", np.array([1, 0, 1, 1], np.float32)), "w/Q", "not above 0"),
    "scale nan": (lambda m: replace(m, "in_scale", np.array(np.nan, np.float32)), "in/Q", "not above 0"),
    "uint8": (lambda m: replace(m, "in_zero", np.array(0, np.uint8)), "in/Q", "its zero point is uint8"),
    "zero point": (lambda m: replace(m, "in_zero", np.array(3, np.int8)), "in/Q", "its zero point is not 0"),
    "sizes": (lambda m: replace(m, "w_zero", np.zeros(3, np.int8)), "w/Q", "has 4 scales and 3 zero points"),
    "no axis": (no_axis, "w/DQ", "no axis is written out"),
    "stored integers": (stored_integers, "w/DQ", "dequantizes stored integers"),
    "other scale": (other_scale, "in/Q", "not followed by DequantizeLinear nodes with its own scale"),
    "old": (old, "model", "opset 12 has no per-channel Q/DQ"),
}


def test_a_clean_graph_has_no_findings(model: onnx.ModelProto, tmp_path: Path) -> None:
    assert qdq.lint(model, newest_opset=17) == ()
    onnx.save(model, tmp_path / "model.onnx")
    qdq.check(tmp_path / "model.onnx", strict=True, newest_opset=17)


@pytest.mark.parametrize("name", sorted(EDITS))
def test_each_defect_is_found_where_it_is(model: onnx.ModelProto, name: str) -> None:
    edit, place, message = EDITS[name]
    edit(model)
    findings = {(item.node, item.message) for item in qdq.lint(model)}
    assert any(where == place and message in text for where, text in findings), findings


def test_an_opset_that_the_target_does_not_parse(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 18
    assert [str(item) for item in qdq.lint(model, newest_opset=17)] == ["model: opset 18 is newer than 17"]
    assert qdq.lint(model) == ()


def test_scales_in_constant_nodes_are_constant_too(model: onnx.ModelProto) -> None:
    stored = next(item for item in model.graph.initializer if item.name == "in_scale")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["in_scale"], name="c", value=stored))
    model.graph.initializer.remove(stored)
    assert qdq.lint(model) == ()


def test_check_lists_findings_and_counts_the_rest(model: onnx.ModelProto, tmp_path: Path) -> None:
    replace(model, "in_zero", np.array(3, np.int8))
    replace(model, "w_zero", np.full(4, 3, np.int8))
    for _ in range(4):
        double(model)
        model.graph.initializer[-1].name += str(len(model.graph.initializer))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    qdq.check(path, strict=False)  # other targets take it
    with pytest.raises(ExportError) as raised:
        qdq.check(path, strict=True)
    assert raised.value.where == str(path)
    assert "a double tensor" in str(raised.value)
    assert "; and 3 more" in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"no onnx at all"])
def test_a_file_that_is_no_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError, match="is not valid ONNX"):
        qdq.check(path, strict=False)


def test_precisions_are_read_back_from_the_graph(model: onnx.ModelProto) -> None:
    assert qdq.layer_precisions(model) == {"conv": "int8", "fc": "fp32"}
    node(model, "conv").input[0] = "x"
    assert qdq.layer_precisions(model) == {"conv": "fp32", "fc": "fp32"}, "int8 needs both, input and weight"
    replace(model, "matrix", np.zeros((16, 2), np.float16))
    assert qdq.layer_precisions(model)["fc"] == "fp16"
