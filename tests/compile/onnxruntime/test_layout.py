from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from repo_builder.compile.onnxruntime.layout import quantized_layers, to_cpu_layout


def run(model: onnx.ModelProto, inputs: dict[str, Any], *, optimize: bool = True) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def optimized_ops(model: onnx.ModelProto, tmp_path: Any) -> Counter[str]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)


def images(count: int = 64) -> dict[str, Any]:
    return {"image": np.random.default_rng(1).normal(0, 1.5, (count, 3, 8, 8)).astype(np.float32)}


def test_the_rewrite_computes_the_same(quantized: onnx.ModelProto) -> None:
    before = run(quantized, images(), optimize=False)
    rewritten, restored = to_cpu_layout(quantized, signed_inputs=True)
    onnx.checker.check_model(rewritten, full_check=True)
    assert restored == ()
    # biases are rounded to steps of input scale × weight scale: nothing else differs
    np.testing.assert_allclose(run(rewritten, images(), optimize=False), before, atol=0.05)
    assert np.mean(run(rewritten, images(), optimize=False).argmax(1) == before.argmax(1)) >= 0.98
    assert np.mean(run(rewritten, images()).argmax(1) == before.argmax(1)) >= 0.98


def test_onnxruntime_forms_its_quantized_kernels(quantized: onnx.ModelProto, tmp_path: Any) -> None:
    before = optimized_ops(quantized, tmp_path)
    rewritten, _ = to_cpu_layout(quantized, signed_inputs=True)
    after = optimized_ops(rewritten, tmp_path)
    assert before["QLinearConv"] == before["QGemm"] == 0, "TensorRT's layout leaves the layers in floating point"
    assert after["QLinearConv"] == 2
    assert after["QGemm"] == 1
    assert after["Conv"] == after["FusedConv"] == after["Gemm"] == after["Relu"] == 0


def test_the_model_given_is_left_as_it_was(quantized: onnx.ModelProto) -> None:
    before = quantized.SerializeToString(deterministic=True)
    to_cpu_layout(quantized, signed_inputs=False)
    assert quantized.SerializeToString(deterministic=True) == before


def test_activations_behind_a_relu_are_unsigned_with_the_same_scale(quantized: onnx.ModelProto) -> None:
    rewritten, _ = to_cpu_layout(quantized, signed_inputs=True)
    values = {item.name: numpy_helper.to_array(item) for item in rewritten.graph.initializer}
    quantizers = [node for node in rewritten.graph.node if node.op_type == "QuantizeLinear"]
    by_input = {node.input[0]: (values[node.input[1]].item(), values[node.input[2]].dtype) for node in quantizers}
    assert by_input["image"] == (np.float32(6.0 / 127), np.int8)
    assert by_input["relu1"] == (np.float32(9.0 / 127), np.uint8)
    assert by_input["relu2"] == (np.float32(9.0 / 127), np.uint8)  # moved up, before the pooling


def test_a_cpu_that_saturates_gets_its_signed_layers_in_fp32(quantized: onnx.ModelProto) -> None:
    rewritten, restored = to_cpu_layout(quantized, signed_inputs=False)
    onnx.checker.check_model(rewritten, full_check=True)
    assert restored == ("/conv1",)
    assert quantized_layers(quantized) == 3
    assert quantized_layers(rewritten) == 2
    before = run(quantized, images(), optimize=False)
    assert np.mean(run(rewritten, images()).argmax(1) == before.argmax(1)) >= 0.9


def test_a_transposed_weight_is_folded_along_its_new_axis(build: Any) -> None:
    """Linear on 3-D input: weight → Q → DQ(axis 0) → Transpose → MatMul."""
    weight = build.random.normal(0, 1, (5, 6)).astype(np.float32)
    build.constant("w", weight)
    turned = build.add("Transpose", [build.qdq("w", np.abs(weight).max(1), axis=0)], "turned", perm=[1, 0])
    build.add("MatMul", [build.qdq("x", 3.0), turned], "y")
    model = build.model({"x": ["n", 4, 6]}, {"y": ["n", 4, 5]})
    rewritten, _ = to_cpu_layout(model, signed_inputs=True)
    assert "Transpose" not in {node.op_type for node in rewritten.graph.node}
    inputs = {"x": np.random.default_rng(0).normal(0, 1, (3, 4, 6)).astype(np.float32)}
    np.testing.assert_allclose(
        run(rewritten, inputs, optimize=False), run(model, inputs, optimize=False), rtol=1e-5, atol=1e-5
    )
    restored, names = to_cpu_layout(model, signed_inputs=False)
    assert names == ("/y",)
    np.testing.assert_allclose(run(restored, inputs), np.matmul(inputs["x"], weight.T), rtol=1e-5, atol=1e-5)


def test_an_activation_that_others_read_keeps_its_place(build: Any) -> None:
    """A tensor between Relu and QuantizeLinear that is also an output is not moved across."""
    relu = build.add("Relu", ["x"], "relu")
    pooled = build.add("MaxPool", [relu], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    build.conv(build.qdq(pooled, 3.0), (3, 4), "y")
    model = build.model({"x": ["n", 3, 8, 8]}, {"y": ["n", 4, 4, 4], "pooled": ["n", 3, 4, 4]})
    rewritten, _ = to_cpu_layout(model, signed_inputs=True)
    inputs = {"x": images()["image"]}
    np.testing.assert_allclose(run(rewritten, inputs, optimize=False), run(model, inputs, optimize=False), atol=0.02)
    assert sum(node.op_type == "QuantizeLinear" for node in rewritten.graph.node) == 1


@pytest.mark.parametrize("signed", [True, False])
def test_a_model_without_qdq_is_returned_unchanged(build: Any, signed: bool) -> None:
    build.add("Relu", ["x"], "y")
    model = build.model({"x": ["n", 3]}, {"y": ["n", 3]})
    rewritten, restored = to_cpu_layout(model, signed_inputs=signed)
    assert restored == ()
    assert [node.op_type for node in rewritten.graph.node] == ["Relu"]
