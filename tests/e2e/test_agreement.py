"""The placed graph and what ONNX Runtime makes of it are one network: both models, all back ends, every calibrator."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from repo_builder import datasets, recipes
from repo_builder.compile.onnxruntime.target import OnnxRuntimeRunner
from repo_builder.core import artifacts, onnx_files
from repo_builder.core.recipe import InputQuantizer, Recipe, WeightQuantizer
from repo_builder.flows.build import forms, repairing
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


@dataclasses.dataclass(frozen=True)
class Source:
    """A network's fp32 graph, and what there is to calibrate and to run it with."""

    recipe: Recipe
    made: forms.Exported
    graph: Path
    calibration: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]
    fingerprint: str


@pytest.fixture(scope="module")
def source_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    """Export a network once: no calibrator and no back end touches its fp32 graph."""

    @functools.cache
    def exported(model: str) -> Source:
        recipe, folder = recipes.load(model), tmp_path_factory.mktemp(model)
        data = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed)
        parts = {"calibration": _CALIBRATION, "test": _HELD_OUT}
        samples, held_out = (
            {name: values[:most] for name, values in data.split(part).inputs.items()} for part, most in parts.items()
        )
        plain = dataclasses.replace(recipe, quantize=dataclasses.replace(recipe.quantize, layers=()))
        place_of = {"shown": folder, "data": data.fingerprint, "earlier": folder / "none"}
        made = forms.export(plain, forms.source(plain, None), samples, held_out, folder, **place_of)
        return Source(recipe, made, folder / artifacts.FP32_MODEL, samples, held_out, data.fingerprint)

    return exported


@pytest.mark.parametrize("model", ["vgg", "jsc"])
@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_every_form_gives_the_same_class(
    source_of: Callable[[str], Source], model: str, calibrator: str, tmp_path: Path
) -> None:
    source = source_of(model)
    recipe, made, held_out = source.recipe, source.made, source.held_out
    rules = tuple(
        dataclasses.replace(rule, input=CALIBRATORS[calibrator], weight=WeightQuantizer())
        for rule in recipe.quantize.layers
    )
    found = {}
    for backend in BACKENDS:
        quantize = dataclasses.replace(recipe.quantize, backend=backend, layers=rules)
        changed = dataclasses.replace(recipe, quantize=quantize)
        folder = tmp_path / backend
        folder.mkdir()
        ready, plans = forms.planned(onnx_files.load(source.graph), changed)
        assert {item.precision for item in plans} == {"int8"}
        earlier = {"data": source.fingerprint, "earlier": folder / "none"}
        repairing.calibrated(ready, plans, changed, source.calibration, folder, **earlier)
        found[backend] = store.read_ranges(folder / artifacts.RANGES)
    one, *others = found.values()
    assert all(other.tensors == one.tensors for other in others), "back ends agree to the bit"

    name = recipe.model.outputs[0].name
    assert accuracy.compare(made.outputs["fp32"][name], made.outputs["exported"][name]).agreement == 1
    for target, least in (("onnxruntime-cpu", 0.95), ("tensorrt", 0.93)):
        path = tmp_path / f"{target}.onnx"
        onnx_files.save(place(ready, plans, one, profile(target)).model, path)
        placed = forms.run_onnx(path, held_out, made.taking.batches)[name]
        assert accuracy.compare(made.outputs["exported"][name], placed).agreement >= least
        if target == "onnxruntime-cpu":
            with OnnxRuntimeRunner(path) as run:
                served = run(held_out)[name]
            assert accuracy.compare(placed, served).agreement >= 0.99
            assert np.isfinite(served).all()
