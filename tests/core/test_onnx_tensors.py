from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core.errors import ModelError
from repo_builder.core.onnx_tensors import refuse_damaged


def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def weight() -> TensorProto:
    return numpy_helper.from_array(np.ones((8, 4), np.float32), "w")


def as_initializer(tensor: TensorProto) -> onnx.GraphProto:
    return helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value("x", "N", 8)], [value("y", "N", 4)], [tensor]
    )


def as_constant(tensor: TensorProto) -> onnx.GraphProto:
    node = helper.make_node("Constant", [], ["w"], name="c", value=tensor)
    return helper.make_graph([node], "g", [], [value("w", 8, 4)])


def in_a_branch(tensor: TensorProto) -> onnx.GraphProto:
    node = helper.make_node("If", ["c"], ["y"], then_branch=as_constant(tensor), else_branch=as_constant(weight()))
    return helper.make_graph([node], "g", [], [value("y", 8, 4)])


DAMAGE: dict[str, Callable[[TensorProto], object]] = {
    "other dims": lambda tensor: tensor.dims.__setitem__(0, 3),
    "huge dims": lambda tensor: tensor.dims.__setitem__(0, 2**40),
    "negative dims": lambda tensor: tensor.dims.__setitem__(0, -8),
    "cut data": lambda tensor: setattr(tensor, "raw_data", tensor.raw_data[:7]),
    "no type": lambda tensor: setattr(tensor, "data_type", 0),
    "unknown type": lambda tensor: setattr(tensor, "data_type", 99),
    "wider type": lambda tensor: setattr(tensor, "data_type", TensorProto.DOUBLE),
}


@pytest.mark.parametrize("place", [as_initializer, as_constant, in_a_branch])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_constant_that_is_not_whole_is_named_wherever_it_is(
    damage: str, place: Callable[[TensorProto], onnx.GraphProto]
) -> None:
    refuse_damaged(helper.make_model(place(weight())), Path("m.onnx"))
    tensor = weight()
    DAMAGE[damage](tensor)
    graph = place(tensor)
    with pytest.raises(ModelError, match=r"the tensor '(w|c.value)' is damaged") as caught:
        refuse_damaged(helper.make_model(graph), Path("m.onnx"))
    assert caught.value.where == "m.onnx"
