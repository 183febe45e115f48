"""A small quantized network, built node by node in TensorRT's layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


class Builder:
    """Adds nodes one after the other; every method returns the name of the tensor it made."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(seed)

    def constant(self, name: str, value: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}", **attributes))
        return output

    def qdq(self, tensor: str, amax: Any, axis: int | None = None) -> str:
        scale = (np.asarray(amax, np.float32) / 127).astype(np.float32)
        names = [
            self.constant(f"{tensor}_scale", scale),
            self.constant(f"{tensor}_zero", np.zeros(scale.shape, np.int8)),
        ]
        along = {} if axis is None else {"axis": axis}
        self.add("QuantizeLinear", [tensor, *names], f"{tensor}_q", **along)
        return self.add("DequantizeLinear", [f"{tensor}_q", *names], f"{tensor}_dq", **along)

    def conv(self, tensor: str, channels: tuple[int, int], name: str) -> str:
        ins, outs = channels
        weight = self.random.normal(0, 1 / np.sqrt(ins * 9), (outs, ins, 3, 3)).astype(np.float32)
        bias = self.random.normal(0, 0.1, outs).astype(np.float32)
        self.constant(f"{name}_w", weight)
        quantized = self.qdq(f"{name}_w", np.abs(weight).max((1, 2, 3)), axis=0)
        return self.add("Conv", [tensor, quantized, self.constant(f"{name}_b", bias)], name, pads=[1, 1, 1, 1])

    def linear(self, tensor: str, sizes: tuple[int, int], name: str) -> str:
        ins, outs = sizes
        weight = self.random.normal(0, 1 / np.sqrt(ins), (outs, ins)).astype(np.float32)
        bias = self.random.normal(0, 0.1, outs).astype(np.float32)
        self.constant(f"{name}_w", weight)
        quantized = self.qdq(f"{name}_w", np.abs(weight).max(1), axis=0)
        return self.add("Gemm", [tensor, quantized, self.constant(f"{name}_b", bias)], name, transB=1)

    def model(self, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]]) -> onnx.ModelProto:
        def info(items: dict[str, list[Any]]) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in items.items()]

        graph = helper.make_graph(self.nodes, "net", info(inputs), info(outputs), self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


@pytest.fixture
def build() -> Builder:
    return Builder()


@pytest.fixture
def quantized() -> onnx.ModelProto:
    """conv → relu → conv → relu → max pool → flatten → gemm, each layer int8; image (n, 3, 8, 8) → logits (n, 5)."""
    net = Builder()
    first = net.add("Relu", [net.conv(net.qdq("image", 6.0), (3, 8), "conv1")], "relu1")
    second = net.add("Relu", [net.conv(net.qdq(first, 9.0), (8, 8), "conv2")], "relu2")
    pooled = net.add("MaxPool", [second], "pool", kernel_shape=[2, 2], strides=[2, 2])
    flat = net.add("Flatten", [pooled], "flat")
    net.linear(net.qdq(flat, 9.0), (128, 5), "logits")
    return net.model({"image": ["n", 3, 8, 8]}, {"logits": ["n", 5]})
