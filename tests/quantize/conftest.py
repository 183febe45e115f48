"""Small networks, and one line to quantize them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn


def _randomize(module: Any, seed: int = 0) -> Any:
    """Give every BatchNorm statistics, negative gains among them, and every parameter a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for item in module.modules():
            if isinstance(item, nn.modules.batchnorm._BatchNorm):
                if item.running_mean is not None:
                    item.running_mean.copy_(torch.randn(item.num_features, generator=generator))
                    item.running_var.copy_(torch.rand(item.num_features, generator=generator) + 0.2)
                if item.affine:
                    item.weight.copy_(torch.randn(item.num_features, generator=generator))
                    item.bias.copy_(torch.randn(item.num_features, generator=generator))
    return module.eval()


class Small(nn.Module):
    """A convolution, a residual sum, pooling and two linear layers: images (n, 3, 8, 8) → (n, 4)."""

    def __init__(self) -> None:
        super().__init__()
        from repo_builder.quantize.layers import Add

        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.add = Add()
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Sequential(nn.Linear(128, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Any) -> Any:
        x = self.features(x)
        x = self.pool(self.add(x, self.branch(x)))
        return self.head(torch.flatten(x, 1))


@pytest.fixture
def randomize() -> Callable[..., Any]:
    return _randomize


@pytest.fixture
def small() -> Any:
    torch.manual_seed(0)
    return _randomize(Small())


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def quantize() -> Callable[..., Any]:
    """Quantize a module that takes one input: ``quantize(module, samples, *rules, backend=..., seed=...)``."""
    from repo_builder import quantize as stage
    from repo_builder.core.recipe import LayerRule, QuantizeSpec

    def run(
        module: Any,
        samples: np.ndarray,
        *rules: LayerRule,
        backend: str = "pytorch-quantization",
        batch_size: int = 16,
        seed: int = 0,
    ) -> Any:
        spec = QuantizeSpec(backend=backend, batch_size=batch_size, layers=rules or (LayerRule(precision="int8"),))
        return stage.quantize(module, spec, {"x": samples}, input_names=("x",), seed=seed)

    return run
