"""However a model takes samples: fixed batches, none, another axis, rows that depend on each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder.compile.onnxruntime.target import OnnxRuntimeRunner
from repo_builder.core.errors import CompileError, ModelError
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.flows.build import running

Graph = Callable[..., Path]
X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def spec(name: str, *shape: int, axis: int = 0) -> TensorSpec:
    return TensorSpec(name=name, dtype=DType.FP32, shape=shape, batch_axis=axis)


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    """Return a writer of graphs of a few nodes."""

    def write(
        nodes: list[onnx.NodeProto], inputs: dict[str, list[object]], outputs: dict[str, list[object]], **stored: object
    ) -> Path:
        values = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
        sides = [
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
            for side in (inputs, outputs)
        ]
        made = helper.make_graph(nodes, "g", *sides, values)
        path = tmp_path / "m.onnx"
        onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return path

    return write


def outputs(path: Path, found: running.Taking, **samples: np.ndarray) -> dict[str, np.ndarray]:
    with OnnxRuntimeRunner(path) as model:
        return running.run(model, found.batches, samples)


NEG = [helper.make_node("Neg", ["x"], ["y"])]


@pytest.mark.parametrize(
    ("shape", "size", "alone"),
    [
        (["N", 3], 64, ""),
        ([1, 3], 1, "fixed to a batch of 1"),
        ([4, 3], 4, "fixed to a batch of 4"),
        ([3], 1, "no axis of 'x' counts samples"),
    ],
)
def test_a_model_is_run_as_it_takes_samples(graph: Graph, shape: list[object], size: int, alone: str) -> None:
    path = graph(NEG, {"x": shape}, {"y": shape})
    found = running.taking(path, [spec("x", 3)], [spec("y", 3)], {"x": X})
    assert found.batches.size == size
    assert alone in found.alone
    np.testing.assert_array_equal(outputs(path, found, x=X)["y"], -X)


def test_rows_that_depend_on_each_other_run_alone(graph: Graph) -> None:
    path = graph([helper.make_node("CumSum", ["x", "axis"], ["y"])], {"x": ["N", 3]}, {"y": ["N", 3]}, axis=np.int64(0))
    found = running.taking(path, [spec("x", 3)], [spec("y", 3)], {"x": X})
    assert found.alone == found.reason
    assert "depends on the samples that run together with it" in found.alone
    np.testing.assert_array_equal(outputs(path, found, x=X)["y"], X)


def test_a_state_with_its_samples_on_the_second_axis(graph: Graph) -> None:
    nodes = [
        helper.make_node("ReduceSum", ["state", "axes"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
        helper.make_node("Neg", ["state"], ["next"]),
    ]
    path = graph(nodes, {"x": ["N", 3], "state": [2, "N", 3]}, {"y": ["N", 3], "next": [2, "N", 3]}, axes=np.array([0]))
    inputs, outs = [spec("x", 3), spec("state", 2, 3, axis=1)], [spec("y", 3), spec("next", 2, 3, axis=1)]
    state = np.random.default_rng(1).normal(size=(5, 2, 3)).astype(np.float32)
    found = running.taking(path, inputs, outs, {"x": X, "state": state})
    assert found.alone == "axis 1 of 'state' counts samples, not the first"
    made = outputs(path, found, x=X, state=state)
    np.testing.assert_allclose(made["y"], X + state.sum(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(made["next"], -state)


def test_outputs_that_the_recipe_does_not_name_are_not_asked_for(graph: Graph) -> None:
    nodes = [*NEG, helper.make_node("Exp", ["s"], ["scale"])]
    path = graph(nodes, {"x": ["N", 3]}, {"y": ["N", 3], "scale": []}, s=np.float32(1))
    found = running.batches_of(path, [spec("x", 3)], [spec("y", 3)])
    with OnnxRuntimeRunner(path) as model:
        assert set(running.run(model, found, {"x": X})) == {"y"}


def test_an_output_that_has_no_samples_to_take_is_refused(graph: Graph) -> None:
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=0)]
    path = graph(nodes, {"x": ["N", 3]}, {"y": [3]})
    with pytest.raises(ModelError, match=r"output 'y': is \[3\] in the model: no axis counts samples"):
        running.taking(path, [spec("x", 3)], [spec("y", 3)], {"x": X})
    found = running.taking(path, [spec("x", 3)], [spec("y", 3, axis=-1)], {"x": X})
    assert found.batches.size == 1
    np.testing.assert_array_equal(outputs(path, found, x=X)["y"], X)


@pytest.mark.parametrize(
    ("inputs", "outs", "message"),
    [
        ([spec("z", 3)], [spec("y", 3)], "model.inputs: the model has no such tensor 'z'; it has x"),
        ([spec("x", 3)], [spec("z", 3)], "model.outputs: the model has no such tensor 'z'; it has y"),
        ([spec("x", 3, 1, 1)], [spec("y", 3)], r"'x': is \[-1, 3\] in the model"),
    ],
)
def test_a_recipe_that_is_not_the_models_is_refused(
    graph: Graph, inputs: list[TensorSpec], outs: list[TensorSpec], message: str
) -> None:
    path = graph(NEG, {"x": ["N", 3]}, {"y": ["N", 3]})
    with pytest.raises(ModelError, match=message):
        running.batches_of(path, inputs, outs)


def test_inputs_that_a_model_does_not_run_on_are_one_sentence(graph: Graph) -> None:
    path = graph(NEG, {"x": ["N", 3]}, {"y": ["N", 3]})
    with OnnxRuntimeRunner(path) as model, pytest.raises(CompileError, match=r"does not run it on x \[5, 2\]"):
        model({"x": X[:, :2]})


def test_strings_and_single_numbers_are_compared_by_sample(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["number"], keepdims=0),
        helper.make_node("Cast", ["number"], ["text"], to=TensorProto.STRING),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [
            helper.make_tensor_value_info("text", TensorProto.STRING, ["N"]),
            helper.make_tensor_value_info("number", TensorProto.FLOAT, ["N"]),
        ],
        [numpy_helper.from_array(np.array([1]), "axes")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    text = TensorSpec(name="text", dtype=DType.STRING, shape=())
    found = running.taking(path, [spec("x", 3)], [text, spec("number")], {"x": X})
    assert found.alone == ""
    given = outputs(path, found, x=X)
    assert [item.shape for item in given.values()] == [(5,), (5,)]
