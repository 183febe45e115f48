"""LayerNormalization written out gives what the operator gives, in both float types."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder.compile.tensorrt.normalization import without_layer_normalization

ort = pytest.importorskip("onnxruntime")


def _model(kind: type[np.floating], axis: int, outputs: int, *, bias: bool) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    shape = (4, 6)[axis % 3 - 1 :]
    stored = [numpy_helper.from_array(random.normal(1, 0.3, shape).astype(kind), "scale")]
    if bias:
        stored.append(numpy_helper.from_array(random.normal(0, 0.3, shape).astype(kind), "bias"))
    names = ["y", "mean", "deviation"][:outputs]
    node = helper.make_node(
        "LayerNormalization", ["x", "scale", *(["bias"] if bias else [])], names, name="norm", axis=axis, epsilon=1e-3
    )
    float_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    ends = [helper.make_tensor_value_info("x", float_type, ["n", 4, 6])]
    outs = [
        helper.make_tensor_value_info(
            name,
            float_type if name == "y" else TensorProto.FLOAT,
            ["n", *((4, 6) if name == "y" else (4, 1) if axis in (-1, 2) else (1, 1))],
        )
        for name in names
    ]
    graph = helper.make_graph([node], "g", ends, outs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {"x": x})
    return found


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("axis", [-1, 1, -2])
@pytest.mark.parametrize(("outputs", "bias"), [(1, True), (1, False), (3, True)])
def test_it_is_what_the_operator_gives(kind: type[np.floating], axis: int, outputs: int, *, bias: bool) -> None:
    model = _model(kind, axis, outputs, bias=bias)
    written = without_layer_normalization(model)
    assert "LayerNormalization" not in {node.op_type for node in written.graph.node}
    onnx.checker.check_model(written, full_check=True)
    # 300 squared overflows fp16
    x = (300 * np.random.default_rng(1).normal(size=(3, 4, 6))).astype(kind)
    for found, wanted in zip(_run(written, x), _run(model, x), strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, atol=4e-3 if kind is np.float16 else 1e-5, rtol=1e-3)


def test_a_model_without_any_is_left_alone() -> None:
    model = _model(np.float32, -1, 1, bias=True)
    model.graph.node[0].op_type = "Sum"
    assert without_layer_normalization(model) is model
