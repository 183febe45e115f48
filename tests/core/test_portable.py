"""Placed ONNX files: sizes that are known stand in them, and their IR version is no newer than need be."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core.portable import make_portable, needed_ir_version
from repo_builder.core.tensors import DType, TensorSpec


def _model(*shape: int | str, opset: int = 17, ir: int = 10, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    tensors = [helper.make_tensor_value_info(name, kind, shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", tensors[:1], tensors[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def _sizes(model: onnx.ModelProto) -> list[int | str]:
    dims = model.graph.output[0].type.tensor_type.shape.dim
    return [item.dim_value if item.HasField("dim_value") else item.dim_param for item in dims]


def _spec(*shape: int) -> TensorSpec:
    return TensorSpec(name="y", dtype=DType.FP32, shape=shape)


@pytest.mark.parametrize(
    ("shape", "known", "left"),
    [
        (("N", 2, "w"), (2, 5), ["N", 2, 5]),
        (("N", "c", "w"), (-1, 5), ["N", "c", 5]),
        (("a", "b"), (3, 5), [3, 5]),
        (("N",), (), ["N"]),
        (("N", 7), (5,), ["N", 7]),
        (("N", "a", "b", "c"), (5,), ["N", "a", "b", "c"]),
    ],
)
def test_sizes_that_the_recipe_fixes_replace_symbols(
    shape: tuple[int | str, ...], known: tuple[int, ...], left: list[int | str]
) -> None:
    model = _model(*shape)
    make_portable(model, [_spec(*known)])
    assert _sizes(model) == left


@pytest.mark.parametrize(
    ("opset", "ir", "wanted"), [(17, 10, 8), (17, 8, 8), (17, 7, 7), (13, 10, 7), (21, 10, 10), (20, 11, 9)]
)
def test_the_ir_version_is_lowered_as_far_as_the_operator_set_allows(opset: int, ir: int, wanted: int) -> None:
    model = _model("N", 4, opset=opset, ir=ir)
    make_portable(model, [])
    assert model.ir_version == wanted


def test_types_functions_and_metadata_keep_the_version_that_brought_them() -> None:
    assert needed_ir_version(_model("N", kind=TensorProto.FLOAT8E4M3FN)) == 9
    assert needed_ir_version(_model("N", kind=TensorProto.INT4)) == 10
    model = _model("N")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), "w"))
    assert needed_ir_version(model) == 8
    model.graph.node[0].metadata_props.add(key="a", value="b")
    assert needed_ir_version(model) == 10
    model = _model("N", opset=999, ir=33)
    assert needed_ir_version(model) == 33


@given(st.lists(st.integers(1, 9), max_size=4), st.data())
def test_fixing_never_changes_a_size_that_is_there(sizes: list[int], data: st.DataObject) -> None:
    shape: list[int | str] = [data.draw(st.sampled_from([size, f"s{place}"])) for place, size in enumerate(sizes)]
    model = _model("N", *shape)
    make_portable(model, [_spec(*sizes)])
    assert _sizes(model) == ["N", *sizes]
