"""Running a torch module on numpy samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from repo_builder.core.errors import ModelError  # noqa: E402
from repo_builder.core.samples import Batches  # noqa: E402
from repo_builder.core.tensors import DType, TensorSpec  # noqa: E402
from repo_builder.models.running import run  # noqa: E402


def batches(inputs: Iterable[str] | dict[str, int], outputs: Iterable[str] | dict[str, int]) -> Batches:
    """Tensor → the axis that counts samples; shapes are not asked for."""

    def specs(given: Iterable[str] | dict[str, int]) -> list[TensorSpec]:
        axes = given if isinstance(given, dict) else dict.fromkeys(given, 0)
        return [
            TensorSpec(name=name, dtype=DType.FP32, shape=(1,) * max(0, axis), batch_axis=axis)
            for name, axis in axes.items()
        ]

    return Batches.of(specs(inputs), specs(outputs), {})


class Two(torch.nn.Module):
    def forward(self, left: Any, right: Any) -> Any:
        return {"sum": left + right, "positive": left > right}


def test_all_outputs_of_all_samples_come_by_name() -> None:
    draw = np.random.default_rng(0).standard_normal((2, 150, 3)).astype(np.float32)
    inputs = {"right": draw[1], "left": draw[0]}
    found = run(Two(), inputs, batches(("left", "right"), ("positive", "sum")))
    np.testing.assert_allclose(found["sum"], draw[0] + draw[1], rtol=1e-6)
    np.testing.assert_array_equal(found["positive"], draw[0] > draw[1])


def test_what_does_not_run_or_gives_something_else_is_one_sentence() -> None:
    inputs = {"left": np.ones((2, 3), np.float32), "right": np.ones((2, 4), np.float32)}
    with pytest.raises(ModelError, match=r"does not run on inputs of shape \[2, 3\], \[2, 4\]") as raised:
        run(Two(), inputs, batches(("left", "right"), ("sum",)))
    assert "\n" not in str(raised.value)
    with pytest.raises(ModelError, match="the network gives 1 outputs, the recipe names 2"):
        run(torch.nn.Identity(), {"x": np.ones((2, 3), np.float32)}, batches(("x",), ("a", "b")))


class Step(torch.nn.Module):
    """A recurrent cell, whose state ``(layers, n, size)`` counts samples on axis 1."""

    def forward(self, x: Any, state: Any) -> Any:
        after = state * 2 + x
        return after.sum(0), after


def test_samples_may_be_on_another_axis() -> None:
    draw = np.random.default_rng(0).standard_normal
    samples = {"x": draw((70, 3)).astype(np.float32), "state": draw((70, 2, 3)).astype(np.float32)}
    found = run(Step(), samples, batches({"x": 0, "state": 1}, {"y": 0, "after": 1}))
    after = samples["state"] * 2 + samples["x"][:, None]
    np.testing.assert_allclose(found["after"], after, rtol=1e-6)
    np.testing.assert_allclose(found["y"], after.sum(1), rtol=1e-5)


def test_where_no_axis_counts_samples_each_is_a_run_of_its_own() -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    found = run(torch.nn.Softmax(dim=0), {"x": x}, batches({"x": -1}, {"y": -1}))
    np.testing.assert_allclose(found["y"], np.exp(x) / np.exp(x).sum(1, keepdims=True), rtol=1e-5)


def test_an_output_that_does_not_count_samples_is_refused() -> None:
    class Total(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.sum(0)

    with pytest.raises(ModelError, match=r"output 'y': has the shape \[3\] for 5 samples.* batch_axis"):
        run(Total(), {"x": np.ones((5, 3), np.float32)}, batches({"x": 0}, {"y": 0}))
