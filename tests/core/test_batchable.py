"""Whether requests may be put together: what is run tells, and the reason is said."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core import batchable
from repo_builder.core.batchable import batches
from repo_builder.core.tensors import Array

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

Tensor = tuple[str, list[int | str], int]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
node = helper.make_node


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    constants: dict[str, Any] | None = None,
) -> onnx.ModelProto:
    values = [[helper.make_tensor_value_info(name, kind, shape) for name, shape, kind in s] for s in (inputs, outputs)]
    initial = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    made = helper.make_graph(nodes, "g", *values, initial)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


X: list[Tensor] = [("x", ["N", 4], FLOAT)]
Y: list[Tensor] = [("y", ["N", 4], FLOAT)]
A: list[Tensor] = [("a", ["p", 4], FLOAT)]
B: list[Tensor] = [("b", ["q", 4], FLOAT)]

BATCH: dict[str, onnx.ModelProto] = {
    "each row alone": graph([node("Softmax", ["x"], ["y"], axis=1)], X, Y),
    "text": graph(
        [node("Identity", ["x"], ["y"])],
        [("x", ["N", 2], TensorProto.STRING)],
        [("y", ["N", 2], TensorProto.STRING)],
    ),
    "indices into two rows": graph(
        [node("Gather", ["w", "x"], ["y"])],
        [("x", ["N", "length"], INT64)],
        [("y", ["N", "length", 4], FLOAT)],
        {"w": np.ones((2, 4), np.float32)},
    ),
    "one size under two names": graph([node("Add", ["a", "b"], ["y"])], A + B, [("y", ["r", 4], FLOAT)]),
    "a size that only some inputs take": graph(
        [node("Reshape", ["x", "s"], ["y"])],
        [("x", ["N", "W"], FLOAT)],
        [("y", ["N", 16, 2], FLOAT)],
        {"s": np.array([-1, 16, 2])},
    ),
}
NO_BATCH: dict[str, tuple[onnx.ModelProto, str]] = {
    "a sum along it": (
        graph([node("CumSum", ["x", "axis"], ["y"])], X, Y, {"axis": np.int64(0)}),
        "depends on the samples that run together",
    ),
    "softmax over it": (graph([node("Softmax", ["x"], ["y"], axis=0)], X, Y), "depends on the samples"),
    "the mean of all": (
        graph([node("ReduceMean", ["x"], ["m"], axes=[0]), node("Sub", ["x", "m"], ["y"])], X, Y),
        "depends on the samples",
    ),
    "one scale for all": (
        graph(
            [node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])],
            X,
            Y,
        ),
        "depends on the samples",
    ),
    "a row that counts the rows": (
        graph(
            [
                node("Shape", ["x"], ["s"], start=0, end=1),
                node("Cast", ["s"], ["n"], to=FLOAT),
                node("Mul", ["x", "n"], ["y"]),
            ],
            X,
            Y,
        ),
        "something else than alone",
    ),
    "every pair": (
        graph(
            [node("Transpose", ["b"], ["t"], perm=[1, 0]), node("MatMul", ["a", "t"], ["y"])],
            A + B,
            [("y", ["p", "q"], FLOAT)],
        ),
        "depends on the samples",
    ),
    "two lists": (
        graph(
            [node("Relu", ["a"], ["y"]), node("Relu", ["b"], ["z"])],
            A + B,
            [("y", ["p", 4], FLOAT), ("z", ["q", 4], FLOAT)],
        ),
        "takes 3 rows of 'a' with 4 of 'b'",
    ),
    "as many rows as are found": (
        graph([node("NonZero", ["x"], ["t"]), node("Transpose", ["t"], ["y"])], X, [("y", ["K", 2], INT64)]),
        "for 3 samples together",
    ),
    "two samples baked in": (
        graph([node("Reshape", ["x", "s"], ["y"])], X, [("y", ["M", 8], FLOAT)], {"s": np.array([2, -1])}),
        "",
    ),
    "chance": (
        graph([node("RandomUniformLike", ["x"], ["r"]), node("Add", ["x", "r"], ["y"])], X, Y),
        "could not be compared: the model gives something else each time",
    ),
    "no size at all": (
        graph([node("Relu", ["x"], ["y"])], [("x", [0, 4], FLOAT)], [("y", [0, 4], FLOAT)]),
        "does not vary (its shape is [0, 4])",
    ),
    "one size": (
        graph([node("Relu", ["x"], ["y"])], [("x", [1, 4], FLOAT)], [("y", [1, 4], FLOAT)]),
        "does not vary (its shape is [1, 4])",
    ),
}


@pytest.mark.parametrize("name", BATCH)
def test_rows_that_know_nothing_of_each_other_batch(name: str, tmp_path: Path) -> None:
    onnx.save(BATCH[name], tmp_path / "m.onnx")
    verdict = batches(tmp_path / "m.onnx")
    assert verdict.batches, verdict.reason
    assert verdict.tried
    assert batches(BATCH[name]) == verdict


@pytest.mark.parametrize("name", NO_BATCH)
def test_others_do_not_and_the_reason_is_said(name: str) -> None:
    model, reason = NO_BATCH[name]
    verdict = batches(model)
    assert not verdict.batches
    assert reason in verdict.reason


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize(("name", "right"), [("each row alone", True), ("a sum along it", False)])
def test_samples_that_are_given_are_used(count: int, name: str, right: bool) -> None:
    model = BATCH[name] if right else NO_BATCH[name][0]
    rows = np.random.default_rng(3).standard_normal((count, 4)).astype(np.float32)
    assert batches(model, {"x": rows}).batches is right


def test_equal_samples_tell_as_much_as_others() -> None:
    rows = np.tile(np.arange(4, dtype=np.float32), (5, 1))
    assert not batches(NO_BATCH["the mean of all"][0], {"x": rows}).batches


def test_samples_that_the_model_refuses_are_no_verdict_on_it() -> None:
    verdict = batches(BATCH["each row alone"], {"x": np.zeros((4, 5), np.float32)})
    assert not verdict.batches
    assert not verdict.tried
    assert "takes none of the samples" in verdict.reason
    assert "there are no samples" in batches(BATCH["each row alone"], {"x": np.zeros((0, 4), np.float32)}).reason


def test_without_onnx_runtime_nothing_is_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "repo_builder.core.sessions", raising=False)
    verdict = batches(BATCH["each row alone"])
    assert not verdict.batches
    missing = "comparing samples needs the library 'onnxruntime', which is not installed"
    assert verdict.reason == f"samples could not be compared: {missing} → pip install 'repo-builder[onnxruntime]'"


@settings(max_examples=40, deadline=None)
@given(
    axis=st.integers(0, 2),
    op=st.sampled_from(["Softmax", "CumSum", "ReduceMax", "Flip"]),
    seed=st.integers(0, 9),
)
def test_an_operator_batches_unless_it_runs_along_the_first_axis(axis: int, op: str, seed: int) -> None:
    shape: list[int | str] = ["N", 3, 4]
    constants: dict[str, Any] = {"axis": np.array([axis]), "end": np.array([-9]), "one": np.array([-1])}
    nodes = {
        "Softmax": [node("Softmax", ["x"], ["y"], axis=axis)],
        "CumSum": [node("Squeeze", ["axis"], ["a"]), node("CumSum", ["x", "a"], ["y"])],
        "ReduceMax": [node("ReduceMax", ["x"], ["m"], axes=[axis]), node("Sub", ["x", "m"], ["y"])],
        "Flip": [node("Slice", ["x", "one", "end", "axis", "one"], ["y"])],
    }[op]
    model = graph(nodes, [("x", shape, FLOAT)], [("y", shape, FLOAT)], constants)
    rows: Array = np.random.default_rng(seed).standard_normal((batchable.ROWS, 3, 4)).astype(np.float32)
    assert batches(model, {"x": rows}).batches is (axis != 0)
