from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from repo_builder.core.errors import DepartureError
from repo_builder.core.recipe import Recipe, parse
from repo_builder.core.records import AccuracyRecord, LayerRecord
from repo_builder.datasets import Samples
from repo_builder.flows.build import scores as scoring

TENSOR = {"name": "x", "dtype": "fp32", "shape": [2]}
LAYERS = tuple(
    LayerRecord(name=name, type="Linear", asked="int8", sqnr_db=ratio)
    for name, ratio in (("first", 30.0), ("second", 4.0), ("third", 7.0), ("float", None))
)


def recipe(task: str = "classification", **measure: Any) -> Recipe:
    outputs = [{**TENSOR, "name": "y"}, {**TENSOR, "name": "other"}]
    model = {"source": "vgg", "inputs": [TENSOR], "outputs": outputs}
    return parse({"name": "n", "model": model, "data": {"source": "d"}, "measure": {"task": task, **measure}})


LABELS = np.arange(40) % 2
SAMPLES = Samples(inputs={"x": np.zeros((40, 2), np.float32)}, labels=LABELS)
FP32 = (np.eye(2)[LABELS] + 1).astype(np.float32)
OTHER = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)


def spoilt(count: int) -> np.ndarray:
    values = FP32.copy()
    values[:count] = values[:count, ::-1]
    return values


def scored(made: Recipe, **forms: tuple[np.ndarray, np.ndarray]) -> tuple[AccuracyRecord, ...]:
    named = {form: dict(zip(("y", "other"), pair, strict=True)) for form, pair in forms.items()}
    return scoring.score_forms(named, SAMPLES, ("a", "b"), made, LAYERS)


def test_each_form_is_compared_with_the_one_before_it_in_every_output() -> None:
    first, second = scored(recipe(), fp32=(FP32, OTHER), fake_quantized=(spoilt(10), OTHER + 0.01))
    assert (first.form, first.top1, first.outputs) == ("fp32", 1.0, ())
    assert (second.form, second.top1, second.output) == ("fake-quantized", 0.75, "y")
    assert [(item.name, item.agreement) for item in second.outputs] == [("y", 0.75), ("other", 1.0)]
    assert second.max_abs_diff == 1.0
    assert second.low is not None
    assert second.high is not None
    assert second.low < 0.75 < second.high


def test_outputs_that_are_no_classes_have_differences_only() -> None:
    first, second = scored(recipe("other"), fp32=(FP32, OTHER), onnx=(FP32 + 0.5, OTHER))
    assert first.top1 is None
    assert second.max_abs_diff == pytest.approx(0.5)
    assert second.worst == "y"


def test_the_scored_output_is_the_recipes() -> None:
    found = scored(recipe(output="other"), fp32=(OTHER, FP32), onnx=(OTHER, spoilt(20)))
    assert [(item.output, item.top1) for item in found] == [("other", 1.0), ("other", 0.5)]


def test_what_departs_is_refused_with_step_output_and_layers() -> None:
    records = scored(recipe(), fp32=(FP32, OTHER), placed=(spoilt(30), -OTHER))
    with pytest.raises(DepartureError) as raised:
        scoring.hold(records, LAYERS, accept=False)
    said = str(raised.value)
    assert raised.value.exit_code == 14
    assert "quantizing" in said
    assert "'placed' departs from 'fp32'" in said
    assert "top-1 falls from 1.0000 to 0.2500" in said
    assert "'other': signal to noise is -6.0 dB, under 10 dB" in said
    assert "second 4.0 dB, third 7.0 dB" in said
    assert "first" not in said
    assert "--accept-departure" in said


def test_what_departs_is_placed_where_that_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    records = scored(recipe(), fp32=(FP32, OTHER), placed=(FP32, OTHER), onnxruntime=(FP32, -OTHER))
    (sentence,) = scoring.hold(records, LAYERS, accept=True)
    assert sentence.startswith("compiling for onnxruntime changed the model")
    assert "'other'" in capsys.readouterr().err


def test_an_export_that_departs_blames_no_layer() -> None:
    (sentence,) = scoring.departures(scored(recipe(), fp32=(FP32, OTHER), exported=(FP32, OTHER * 1.1)), LAYERS)
    assert sentence.startswith("exporting changed the model")
    assert "dB, under 40 dB" in sentence
    assert "second" not in sentence


def test_values_beyond_the_limits_are_told_though_the_classes_hold(capsys: pytest.CaptureFixture[str]) -> None:
    records = scored(recipe(), fp32=(FP32, OTHER), placed=(FP32 * 3, OTHER))
    assert scoring.hold(records, LAYERS, accept=False) == ()
    said = capsys.readouterr().err
    assert "output 'y' of the form 'placed'" in said
    assert "though its top-1 holds" in said


def test_nothing_is_said_of_what_holds(capsys: pytest.CaptureFixture[str]) -> None:
    records = scored(recipe(), fp32=(FP32, OTHER), placed=(FP32, OTHER))
    assert scoring.hold(records, LAYERS, accept=False) == ()
    assert capsys.readouterr().err == ""
