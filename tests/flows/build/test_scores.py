from __future__ import annotations

import numpy as np
import pytest

from repo_builder.core.recipe import parse
from repo_builder.datasets import Samples
from repo_builder.flows.build import scores as scoring

TENSOR = [{"name": "x", "dtype": "fp32", "shape": [2]}]


def recipe(task: str = "classification") -> object:
    model = {"source": "vgg", "inputs": TENSOR, "outputs": TENSOR}
    return parse({"name": "n", "model": model, "data": {"source": "d"}, "measure": {"task": task}})


SAMPLES = Samples(inputs={"x": np.zeros((4, 2), np.float32)}, labels=np.array([0, 1, 1, 0]))
FP32 = np.array([[2, 1], [1, 2], [1, 2], [2, 1]], np.float32)
INT8 = np.array([[2, 1], [1, 2], [2, 1.5], [2, 1]], np.float32)


def test_each_form_is_compared_with_the_one_before_it() -> None:
    first, second = scoring.score_forms({"fp32": FP32, "fake_quantized": INT8}, SAMPLES, ("a", "b"), recipe())  # type: ignore[arg-type]
    assert (first.form, first.top1, first.agreement, first.max_abs_diff) == ("fp32", 1.0, None, None)
    assert (second.form, second.top1, second.agreement) == ("fake-quantized", 0.75, 0.75)
    assert second.max_abs_diff == 1.0
    assert second.low is not None
    assert second.high is not None
    assert second.low < 0.75 < second.high


def test_outputs_that_are_no_classes_have_differences_only() -> None:
    first, second = scoring.score_forms({"fp32": FP32, "onnx": INT8}, SAMPLES, (), recipe("other"))  # type: ignore[arg-type]
    assert first.top1 is None
    assert second.max_abs_diff == pytest.approx(1.0)
