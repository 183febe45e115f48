"""Strongly typed TensorRT takes the graphs as they are, and every layer becomes what it was asked, on three GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from repo_builder.core.tensors import ShapeProfile
from repo_builder.export import qdq

CAPABILITIES = ("SM86", "SM89", "SM120")


def test_the_small_network_in_int8(rtx: Any, quantized: onnx.ModelProto, tmp_path: Path) -> None:
    profile = {"image": ShapeProfile(min=(1, 3, 8, 8), opt=(4, 3, 8, 8), max=(8, 3, 8, 8))}
    found = rtx(quantized, tmp_path / "model.onnx", profile, *CAPABILITIES)
    asked = qdq.layer_precisions(quantized)
    for capability in CAPABILITIES:
        for node in quantized.graph.node:
            if node.op_type in ("Conv", "Gemm") and node.name in asked:
                assert found.became(node.name, capability) == asked[node.name], node.name
