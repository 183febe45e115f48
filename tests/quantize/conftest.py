"""Small graphs, and one line to lower them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core.recipe import LayerRule, QuantizeSpec

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A graph on its way."""

    ready: onnx.ModelProto
    plans: Sequence[Any]
    ranges: Any
    placed: Any
    rows: Sequence[Any]


@pytest.fixture
def lower() -> Callable[..., Lowered]:
    """Prepare, plan, calibrate, place: ``lower(model, samples, *rules, profile="tensorrt")``."""
    from repo_builder.quantize import plan, table
    from repo_builder.quantize.calibrate import calibrate
    from repo_builder.quantize.layers import find_layers
    from repo_builder.quantize.placement import place, profile
    from repo_builder.quantize.prepare import prepare

    def lower(
        model: onnx.ModelProto,
        samples: np.ndarray,
        *rules: LayerRule,
        target: str = "tensorrt",
        backend: str = "onnxruntime",
        batch_size: int = 16,
        name: str = "x",
    ) -> Lowered:
        spec = QuantizeSpec(backend=backend, batch_size=batch_size, layers=rules or (LayerRule(precision="int8"),))
        ready = prepare(model)
        plans = plan(list(find_layers(ready)), spec)
        ranges, _, _ = calibrate(ready, plans, spec, {name: samples})
        placed = place(ready, plans, ranges, profile(target))
        rows = table.placed(table.records(ready, plans, ranges), placed.layers, {})
        return Lowered(ready=ready, plans=plans, ranges=ranges, placed=placed, rows=rows)

    return lower


def _graph(
    nodes: Sequence[onnx.NodeProto],
    stored: dict[str, np.ndarray],
    shape: Sequence[int | str],
    version: int = 17,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)


@pytest.fixture(scope="session")
def graph_of() -> Callable[..., onnx.ModelProto]:
    """A model from ``x`` of a shape to ``y``."""
    return _graph


@pytest.fixture
def run() -> Callable[..., np.ndarray]:
    """Run a model from ``x`` to its first output, optimizations off."""

    def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: x})[0]

    return run


@pytest.fixture
def matrix() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((32, 6)).astype(np.float32)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def small() -> onnx.ModelProto:
    """Two convolutions, a residual sum, pooling and a linear layer: images (n, 3, 8, 8) → (n, 4)."""
    draw = np.random.default_rng(3).standard_normal
    stored = {
        "w0": draw((8, 3, 3, 3)) / 5,
        "b0": draw(8),
        "w1": draw((8, 8, 3, 3)) / 8,
        "w2": draw((128, 4)) / 11,
        "b2": draw(4),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu"),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], name="branch", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["r0", "c1"], ["s"], name="sum"),
        helper.make_node("MaxPool", ["s"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["y"], name="head"),
    ]
    return _graph(nodes, {name: value.astype(np.float32) for name, value in stored.items()}, ["n", 3, 8, 8])
