"""ONNX Runtime's own profile, by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from repo_builder.compile.onnxruntime import node_times
from repo_builder.core.graphs import layer_of


def test_every_layer_of_a_quantized_network_has_its_time(quantized: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(quantized, path)
    layers = [name for node in quantized.graph.node if (name := layer_of(node)) is not None]
    shape = [item.dim_value or 1 for item in quantized.graph.input[0].type.tensor_type.shape.dim]
    found = node_times.measure(path, layers, {quantized.graph.input[0].name: np.ones(shape, np.float32)})
    assert set(found.layers) == set(layers)
    assert all(value >= 0 for value in found.layers.values())
    assert sum(found.layers.values()) > 0
    assert found.quantizing  # at least the input's
