"""The placed graph and what ONNX Runtime makes of it are one network: both models, all back ends, every calibrator."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from repo_builder import datasets, recipes
from repo_builder.compile.onnxruntime.target import OnnxRuntimeRunner
from repo_builder.core import artifacts, onnx_files
from repo_builder.core.recipe import InputQuantizer, WeightQuantizer
from repo_builder.flows.build import forms
from repo_builder.measure.judge import accuracy
from repo_builder.quantize import BACKENDS, store
from repo_builder.quantize.placement import place, profile

pytestmark = pytest.mark.slow

_CALIBRATION, _HELD_OUT = 64, 256  # samples: enough for ranges that are not trivial, and for a hundredth of agreement

CALIBRATORS = {
    "max": InputQuantizer(calibrator="max"),
    "percentile": InputQuantizer(calibrator="percentile", percentile=99.9),
    "mse": InputQuantizer(calibrator="mse"),
    "entropy": InputQuantizer(calibrator="entropy"),
}


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize("model", ["vgg", "jsc"])
def test_every_form_gives_the_same_class(model: str, calibrator: str, tmp_path: Path) -> None:
    recipe = recipes.load(model)
    rules = tuple(
        dataclasses.replace(rule, input=CALIBRATORS[calibrator], weight=WeightQuantizer())
        for rule in recipe.quantize.layers
    )
    data = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed)
    held_out = {name: values[:_HELD_OUT] for name, values in data.split("test").inputs.items()}
    found = {}
    for backend in BACKENDS:
        quantize = dataclasses.replace(recipe.quantize, backend=backend, layers=rules)
        changed = dataclasses.replace(recipe, quantize=quantize)
        folder = tmp_path / backend
        folder.mkdir()
        source = forms.source(changed, None)
        samples = {name: values[:_CALIBRATION] for name, values in data.split("calibration").inputs.items()}
        place_of = {"shown": folder, "data": data.fingerprint, "earlier": folder / "none"}
        made = forms.export(changed, source, samples, held_out, folder, **place_of)
        assert {item.asked for item in made.layers} == {"int8"}
        found[backend] = store.read_ranges(folder / artifacts.RANGES)
    one, *others = found.values()
    assert all(other.tensors == one.tensors for other in others), "back ends agree to the bit"

    name = recipe.model.outputs[0].name
    assert accuracy.compare(made.outputs["fp32"][name], made.outputs["exported"][name]).agreement == 1
    for target, least in (("onnxruntime-cpu", 0.95), ("tensorrt", 0.93)):
        ready, plans = forms.planned(onnx_files.load(folder / artifacts.FP32_MODEL), changed)
        path = tmp_path / f"{target}.onnx"
        onnx_files.save(place(ready, plans, one, profile(target)).model, path)
        placed = forms.run_onnx(path, held_out, made.taking.batches)[name]
        assert accuracy.compare(made.outputs["exported"][name], placed).agreement >= least
        if target == "onnxruntime-cpu":
            with OnnxRuntimeRunner(path) as run:
                served = run(held_out)[name]
            assert accuracy.compare(placed, served).agreement >= 0.99
            assert np.isfinite(served).all()
