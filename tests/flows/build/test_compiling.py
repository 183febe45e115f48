"""What no TensorRT takes is said on a machine without one, and refused where it is the target."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from repo_builder import recipes
from repo_builder.core.errors import CompileError
from repo_builder.flows.build import BuildOptions, build, compiling


def _exported(folder: Path, kind: str) -> Path:
    nodes = [
        helper.make_node(kind, ["x"], ["codes", "scale", "zero"], name="quantize")
        if kind == "DynamicQuantizeLinear"
        else helper.make_node(kind, ["x"], ["codes"], name="rectify")
    ]
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    out = helper.make_tensor_value_info("codes", TensorProto.UINT8 if len(nodes[0].output) > 1 else 1, ["n", 4])
    graph = helper.make_graph(nodes, "g", ends, [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), folder / "model.onnx")
    return folder / "model.onnx"


def test_a_graph_that_no_tensorrt_takes_is_told_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiling._say_refusals(_exported(tmp_path, "DynamicQuantizeLinear"), "onnxruntime")
    assert "no TensorRT takes this graph: the node 'quantize' (DynamicQuantizeLinear)" in capsys.readouterr().err


def test_it_is_refused_where_tensorrt_is_the_target(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="'quantize'") as caught:
        compiling._say_refusals(_exported(tmp_path, "DynamicQuantizeLinear"), "tensorrt")
    assert caught.value.hint == "use --target onnxruntime"


def test_nothing_is_said_of_what_tensorrt_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiling._say_refusals(_exported(tmp_path, "Relu"), "tensorrt")
    assert capsys.readouterr().err == ""


def test_fp8_on_a_cpu_keeps_its_ladder_and_is_nothing_to_serve(tmp_path: Path) -> None:
    settings = ('quantize.layers=[{ precision = "fp8" }]', "compile.onnxruntime.fp8=simulate")
    made = build(
        BuildOptions(
            recipe=recipes.load("jsc", settings), work=tmp_path / "b", repository=tmp_path / "r",
            target="onnxruntime",
        )
    ).engine  # fmt: skip
    rungs = {item.form: item for item in made.accuracy}
    assert 15 < (rungs["placed"].sqnr_db or 0) < 60
    assert rungs["onnxruntime"].sqnr_db is not None
    assert rungs["onnxruntime"].sqnr_db > 100  # no pass of the runtime sees through the rounding
    assert {(row.asked, row.got, row.values, row.exactness) for row in made.layers} == {("fp8", "fp32", "fp8", "fp8")}
    assert all(row.sqnr_db is not None and row.input_amax for row in made.layers)
    assert any("this build is for measuring accuracy" in item for item in made.details.notes)
    assert onnx.load(made.model).opset_import[0].version == 19
