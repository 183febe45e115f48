"""What became of a layer is read from ONNX Runtime, not believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from repo_builder.compile.onnxruntime.became import became
from repo_builder.core.errors import CompileError

N = helper.make_node


class Graph:
    """A model of one input (1, 4, 8, 8) under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, Any] = {
            "s": np.float32(0.05),
            "z": np.uint8(0),
            "ws": np.float32(0.02),
            "wz": np.int8(0),
        }

    def pair(self, tensor: str) -> str:
        self.nodes.append(N("QuantizeLinear", [tensor, "s", "z"], [f"{tensor}/q"], name=f"{tensor}/Q"))
        self.nodes.append(N("DequantizeLinear", [f"{tensor}/q", "s", "z"], [f"{tensor}/dq"], name=f"{tensor}/DQ"))
        return f"{tensor}/dq"

    def weight(self, name: str, *shape: int) -> str:
        self.stored[f"{name}/codes"] = np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)
        self.nodes.append(N("DequantizeLinear", [f"{name}/codes", "ws", "wz"], [f"{name}/dq"], name=f"{name}/DQ"))
        return f"{name}/dq"

    def save(self, folder: Path, output: str) -> Path:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in self.stored.items()],
        )
        path = folder / "model.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return path


def test_layers_that_run_in_int8_are_told_with_their_operator(tmp_path: Path) -> None:
    g = Graph()
    x = g.pair("x")
    g.nodes.append(N("Conv", [x, g.weight("a", 8, 4, 3, 3)], ["a_out"], name="a", pads=[1] * 4))
    g.nodes.append(N("Relu", ["a_out"], ["r"], name="relu"))
    r = g.pair("r")
    g.nodes.append(N("MaxPool", [r], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]))
    p = g.pair("p")
    g.nodes.append(N("Conv", [p, g.weight("b", 8, 8, 1, 1)], ["b_out"], name="b"))
    b = g.pair("b_out")
    g.nodes.append(N("Add", [b, p], ["sum"], name="add"))
    s = g.pair("sum")
    g.nodes.append(N("GlobalAveragePool", [s], ["m"], name="mean"))
    g.nodes.append(N("Flatten", [g.pair("m")], ["f"], name="flat"))
    g.nodes.append(N("Gemm", [g.pair("f"), g.weight("c", 8, 5)], ["y"], name="head"))
    rows = {row.name: (row.got, row.operator, row.reason) for row in became(g.save(tmp_path, "y"))}
    assert rows["a"] == rows["b"] == ("int8", "QLinearConv", "")
    assert rows["pool"][0] == "int8"
    assert "MaxPool" in rows["pool"][1]
    assert rows["add"] == ("int8", "QLinearAdd", "")
    assert rows["mean"] == ("int8", "QLinearGlobalAveragePool", "")
    assert rows["head"] == ("int8", "QGemm", "")


def test_a_layer_between_dequantize_and_no_quantize_runs_in_float_and_says_so(tmp_path: Path) -> None:
    g = Graph()
    g.nodes.append(N("Conv", [g.pair("x"), g.weight("a", 8, 4, 3, 3)], ["h"], name="a"))
    g.nodes.append(N("Softmax", ["h"], ["y"], name="soft"))
    (row,) = became(g.save(tmp_path, "y"))
    assert (row.name, row.got) == ("a", "fp32")
    assert "Conv in fp32" in row.reason


def test_what_float_layers_are_fused_into_is_named_and_nothing_is_blamed(tmp_path: Path) -> None:
    g = Graph()
    g.stored = {"w": np.ones((8, 4, 3, 3), np.float32), "v": np.ones((8, 8, 3, 3), np.float32)}
    g.nodes = [
        N("Conv", ["x", "w"], ["h"], name="a", pads=[1] * 4),
        N("Relu", ["h"], ["r"], name="relu"),
        N("Conv", ["r", "v"], ["k"], name="b", pads=[1] * 4),
        N("Add", ["k", "r"], ["s"], name="add"),
        N("Relu", ["s"], ["y"], name="last"),
    ]
    rows = {row.name: row for row in became(g.save(tmp_path, "y"))}
    assert rows["a"].got == rows["b"].got == "fp32"
    assert not rows["a"].reason
    assert not rows["b"].reason
    assert rows["add"].got in ("fp32", "gone")


def test_a_layer_that_runs_twice_is_what_its_slower_run_is(tmp_path: Path) -> None:
    g = Graph()
    weight = g.weight("a", 4, 4, 3, 3)
    g.nodes.append(N("Conv", [g.pair("x"), weight], ["h"], name="a", pads=[1] * 4))
    g.nodes.append(N("Conv", [g.pair("h"), weight], ["k"], name="a#2", pads=[1] * 4))
    g.nodes.append(N("Softmax", ["k"], ["y"], name="soft"))
    (row,) = became(g.save(tmp_path, "y"))
    assert (row.name, row.got) == ("a", "fp32")


def test_layers_can_be_asked_for_and_a_name_of_none_is_gone(tmp_path: Path) -> None:
    g = Graph()
    g.nodes.append(N("Conv", [g.pair("x"), g.weight("a", 8, 4, 3, 3)], ["h"], name="a"))
    g.nodes.append(N("Identity", [g.pair("h")], ["y"], name="end"))
    rows = became(g.save(tmp_path, "y"), ["a", "not there"])
    assert [(row.name, row.got) for row in rows] == [("a", "int8"), ("not there", "gone")]


def test_a_file_that_does_not_load_is_an_error_that_names_it(tmp_path: Path) -> None:
    g = Graph()
    g.nodes.append(N("NoSuchOperator", ["x"], ["y"], name="a"))
    path = g.save(tmp_path, "y")
    with pytest.raises(CompileError, match=r"model\.onnx: ONNX Runtime refuses it"):
        became(path)
