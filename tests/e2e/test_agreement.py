"""Fake-quantized torch and the portable ONNX are one network: both models, both back ends, every calibrator."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from repo_builder import datasets, recipes
from repo_builder.compile.onnxruntime.layout import to_cpu_layout
from repo_builder.compile.onnxruntime.target import OnnxRuntimeRunner
from repo_builder.core.recipe import InputQuantizer, WeightQuantizer
from repo_builder.flows.build import forms as exporting
from repo_builder.measure.judge import accuracy
from repo_builder.quantize import BACKENDS

pytestmark = pytest.mark.slow

CALIBRATORS = {
    "max": InputQuantizer(calibrator="max"),
    "percentile": InputQuantizer(calibrator="percentile", percentile=99.9),
    "mse": InputQuantizer(calibrator="mse"),
    "entropy": InputQuantizer(calibrator="entropy"),
}


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", ["vgg", "jsc"])
def test_every_form_gives_the_same_class(model: str, backend: str, calibrator: str, tmp_path: Path) -> None:
    recipe = recipes.load(model)
    rules = tuple(
        dataclasses.replace(rule, input=CALIBRATORS[calibrator], weight=WeightQuantizer())
        for rule in recipe.quantize.layers
    )
    quantize = dataclasses.replace(recipe.quantize, backend=backend, layers=rules)
    recipe = dataclasses.replace(recipe, quantize=quantize)
    data = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed)
    held_out = data.split("test").inputs
    source = exporting.source(recipe, None)
    made = exporting.export(recipe, source, data.split("calibration").inputs, held_out, tmp_path, shown=tmp_path)
    assert {item.precision for item in made.layers} == {"int8"}

    fake, portable = made.outputs["fake_quantized"], made.outputs["onnx"]
    assert accuracy.compare(fake, portable).agreement >= 0.999

    rewritten, _ = to_cpu_layout(onnx.load(tmp_path / "model.onnx"), signed_inputs=True)
    onnx.save(rewritten, tmp_path / "cpu.onnx")
    with OnnxRuntimeRunner(tmp_path / "cpu.onnx") as run:
        served = run(held_out)[recipe.model.outputs[0].name]
    assert accuracy.compare(portable, served).agreement >= 0.99
    assert np.isfinite(served).all()
