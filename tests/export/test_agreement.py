"""Fake-quantized torch and the portable ONNX, run with Q/DQ as it stands, are the same network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from repo_builder.core.recipe import InputQuantizer, LayerRule, WeightQuantizer  # noqa: E402
from repo_builder.export import qdq  # noqa: E402

SHAPES = {"vgg": (3, 16, 16), "jets": (16,)}
CALIBRATORS = [("max", None), ("percentile", 99.9), ("mse", None), ("entropy", None)]


@pytest.fixture(params=["vgg", "jets"])
def case(request: pytest.FixtureRequest) -> tuple[Any, np.ndarray, np.ndarray, tuple[int, ...]]:
    return (*request.getfixturevalue(request.param), SHAPES[request.param])


@pytest.mark.parametrize("backend", ["modelopt", "pytorch-quantization"])
@pytest.mark.parametrize(("calibrator", "percentile"), CALIBRATORS)
def test_the_same_class_on_at_least_999_of_1000_samples(
    case, quantize, export, run, backend: str, calibrator: str, percentile: float | None
) -> None:
    module, calibration, samples, shape = case
    finder = InputQuantizer(calibrator=calibrator, percentile=percentile)
    made = quantize(module, calibration, LayerRule(precision="int8", input=finder), backend=backend)
    with torch.no_grad():
        expected = made.module(torch.from_numpy(samples)).numpy()
    model = export(made.module, shape)
    assert qdq.lint(model, newest_opset=17) == ()
    assert set(qdq.layer_precisions(model).values()) == {"int8"}
    got = run(model, x=samples)["y"]
    agreement = float((got.argmax(1) == expected.argmax(1)).mean())
    assert agreement >= 0.999
    exact = np.abs(got - expected).max(axis=1) < 1e-4 * np.abs(expected).max()
    assert exact.mean() > 0.9, "but for sums whose last bit decides a rounding, outputs are equal"


@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_costs_little_accuracy(case, quantize, per_channel: bool) -> None:
    module, calibration, samples, _ = case
    rule = LayerRule(
        precision="int8", input=InputQuantizer(calibrator="mse"), weight=WeightQuantizer(per_channel=per_channel)
    )
    made = quantize(module, calibration, rule)
    with torch.no_grad():
        exact, rounded = (item(torch.from_numpy(samples)).argmax(1) for item in (module, made.module))
    assert float((exact == rounded).float().mean()) > 0.95
