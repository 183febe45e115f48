"""Ways to export a module and to run what comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from repo_builder.core.tensors import DType, TensorSpec

torch = pytest.importorskip("torch", reason="torch is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.fixture
def run() -> Callable[..., dict[str, np.ndarray]]:
    """Run a model or a file in ONNX Runtime: ``run(model, x=...)``; optimizations off unless asked for."""

    def run(model: onnx.ModelProto | Path, *, optimize: bool = False, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        data = model.read_bytes() if isinstance(model, Path) else model.SerializeToString()
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        names = [item.name for item in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., onnx.ModelProto]:
    """Export a module with one input ``x`` and one output ``y``, make it ready, and return the model."""
    from repo_builder.export import torch_onnx
    from repo_builder.quantize.prepare import prepare

    def export(module: Any, shape: tuple[int, ...], *, opset: int = 17, dtype: DType = DType.FP32) -> onnx.ModelProto:
        x = torch.zeros((2, *(8 if size == -1 else size for size in shape)))
        with torch.no_grad():
            output = tuple(module.eval()(x).shape[1:])
        model = torch_onnx.export(
            module,
            inputs=(TensorSpec(name="x", dtype=dtype, shape=shape),),
            outputs=(TensorSpec(name="y", dtype=dtype, shape=output if -1 not in shape else (-1,) * len(output)),),
            opset=opset,
            path=tmp_path / "model.onnx",
            samples={"x": x.numpy()},
        )
        return prepare(model.model)

    return export
