"""Networks to export, and ways to run what comes out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from repo_builder.core.tensors import DType, TensorSpec

torch = pytest.importorskip("torch", reason="torch is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
nn = torch.nn


class Vgg(nn.Module):
    """A small VGG: images (n, 3, 16, 16) → logits (n, 10)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for size in (width, width, None, 2 * width, 2 * width, None):
            if size is None:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, size, 3, padding=1), nn.BatchNorm2d(size), nn.ReLU()]
                channels = size
        self.feature_layers = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(channels * 16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.last_layer = nn.Linear(32, 10)

    def forward(self, x: Any) -> Any:
        return self.last_layer(self.classifier(torch.flatten(self.feature_layers(x), 1)))


class Jets(nn.Module):
    """A small jet classifier: features (n, 16) → logits (n, 5)."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (16, 64, 32, 32)
        layers: list[nn.Module] = [nn.BatchNorm1d(16), nn.ReLU()]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(32, 5))

    def forward(self, x: Any) -> Any:
        return self.layers(x)


def _trained(module: Any, samples: np.ndarray, labels: np.ndarray, epochs: int) -> Any:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.from_numpy(samples), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(module.parameters(), 2e-3)
    module.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    return module.eval()


@pytest.fixture(scope="session")
def vgg() -> tuple[Any, np.ndarray, np.ndarray]:
    """A network trained on noisy digits for a second, calibration samples, and test samples."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.repeat(np.kron(digits.images / 16, np.ones((1, 2, 2)))[:, None], 3, axis=1)
    images = (images + 0.2 * np.random.default_rng(0).standard_normal(images.shape)).astype(np.float32)
    torch.manual_seed(0)
    return _trained(Vgg(), images[:800], digits.target[:800], 4), images[:256], images[800:]


@pytest.fixture(scope="session")
def jets() -> tuple[Any, np.ndarray, np.ndarray]:
    """A network trained on five overlapping clouds for a second, calibration samples, and test samples."""
    from sklearn.datasets import make_classification

    samples, labels = make_classification(
        5000, 16, n_informative=12, n_classes=5, n_clusters_per_class=2, class_sep=1.2, random_state=0
    )
    samples = samples.astype(np.float32)
    torch.manual_seed(0)
    return _trained(Jets(), samples[:2000], labels[:2000], 6), samples[:512], samples[2000:]


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
    """Export a module with one input ``x`` and one output ``y``, and return the model."""
    from repo_builder.export import torch_onnx

    def export(module: Any, shape: tuple[int, ...], *, opset: int = 17, dtype: DType = DType.FP32) -> onnx.ModelProto:
        x = torch.zeros((2, *(8 if size == -1 else size for size in shape)))
        with torch.no_grad():
            output = tuple(module.eval()(x).shape[1:])
        torch_onnx.export(
            module,
            inputs=(TensorSpec(name="x", dtype=dtype, shape=shape),),
            outputs=(TensorSpec(name="y", dtype=dtype, shape=output if -1 not in shape else (-1,) * len(output)),),
            opset=opset,
            path=tmp_path / "model.onnx",
        )
        return onnx.load(tmp_path / "model.onnx")

    return export


@pytest.fixture
def quantize() -> Callable[..., Any]:
    """Quantize a module that takes one input: ``quantize(module, samples, *rules, backend=...)``."""
    from repo_builder import quantize as stage
    from repo_builder.core.recipe import LayerRule, QuantizeSpec

    def quantize(module: Any, samples: np.ndarray, *rules: LayerRule, backend: str = "modelopt") -> Any:
        pytest.importorskip(backend.replace("-", "_"), reason=f"{backend} is not installed")
        spec = QuantizeSpec(backend=backend, layers=rules or (LayerRule(precision="int8"),))
        return stage.quantize(module, spec, {"x": samples}, input_names=("x",), seed=0)

    return quantize
