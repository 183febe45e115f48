"""A declared size that the graph contradicts is named; one that varies, in whatever way, is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.flows.build.varying import false_axes

pytest.importorskip("onnxruntime")


def _model(
    folder: Path, nodes: list[onnx.NodeProto], shapes: dict[str, list[object]], values: dict[str, object]
) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "g", ends, [out], stored)
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, dtype=DType.FP32, shape=shape)


def _ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_a_reshape_that_fixes_a_length_is_named_with_what_to_do(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "to"], ["y"])
    path = _model(tmp_path, [node], {"x": ["n", "length"]}, {"to": np.array([-1, 2, 4])})
    (found,) = false_axes(_added(path, 8), [_spec("x", -1)], {"x": _ones(3, 8)})
    assert (found.tensor, found.axis, found.size) == ("x", 1, 8)
    assert "give it as 8 in [[model.inputs]]" in str(found)
    assert "not at 7 and 4 and 16 and 40" in str(found)


def _added(path: Path, size: int) -> Path:
    """Put a sum with a constant of a fixed length in front."""
    model = onnx.load(path)
    model.graph.node.insert(0, helper.make_node("Add", ["x", "bias"], ["biased"]))
    model.graph.node[1].input[0] = "biased"
    model.graph.initializer.append(numpy_helper.from_array(_ones(size), "bias"))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("symbols", [("length", "length"), ("one", "other")], ids=["one name", "a name each"])
def test_sizes_that_vary_together_are_tried_together(tmp_path: Path, symbols: tuple[str, str]) -> None:
    shapes: dict[str, list[object]] = {"x": ["n", symbols[0]], "mask": ["n", symbols[1]]}
    path = _model(tmp_path, [helper.make_node("Mul", ["x", "mask"], ["y"])], shapes, {})
    inputs = [_spec("x", -1), _spec("mask", -1)]
    assert false_axes(path, inputs, {"x": _ones(2, 8), "mask": _ones(2, 8)}) == ()


def test_a_table_of_positions_bounds_a_size_and_does_not_fix_it(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["size"], start=1, end=2),
        helper.make_node("Slice", ["table", "zero", "size", "zero"], ["positions"]),
        helper.make_node("Add", ["x", "positions"], ["y"]),
    ]
    path = _model(tmp_path, nodes, {"x": ["n", "length"]}, {"table": _ones(8), "zero": np.array([0])})
    assert false_axes(path, [_spec("x", -1)], {"x": _ones(2, 8)}) == ()


def test_what_the_recipe_fixes_is_not_asked_for(tmp_path: Path) -> None:
    path = _added(_model(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", "length"]}, {}), 8)
    assert false_axes(path, [_spec("x", 8)], {"x": _ones(2, 8)}) == ()
    assert len(false_axes(path, [_spec("x", -1)], {"x": _ones(2, 8)})) == 1
