"""Running a torch module on numpy samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from repo_builder.core.errors import ModelError  # noqa: E402
from repo_builder.models.running import run  # noqa: E402


class Two(torch.nn.Module):
    def forward(self, left: Any, right: Any) -> Any:
        return {"sum": left + right, "positive": left > right}


def test_all_outputs_of_all_samples_come_by_name() -> None:
    draw = np.random.default_rng(0).standard_normal((2, 150, 3)).astype(np.float32)
    inputs = {"right": draw[1], "left": draw[0]}
    found = run(Two(), inputs, order=("left", "right"), outputs=("positive", "sum"))
    np.testing.assert_allclose(found["sum"], draw[0] + draw[1], rtol=1e-6)
    np.testing.assert_array_equal(found["positive"], draw[0] > draw[1])


def test_what_does_not_run_or_gives_something_else_is_one_sentence() -> None:
    inputs = {"left": np.ones((2, 3), np.float32), "right": np.ones((2, 4), np.float32)}
    with pytest.raises(ModelError, match=r"does not run on inputs of shape \[2, 3\], \[2, 4\]") as raised:
        run(Two(), inputs, order=("left", "right"), outputs=("sum",))
    assert "\n" not in str(raised.value)
    with pytest.raises(ModelError, match="the network gives 1 outputs, the recipe names 2"):
        run(torch.nn.Identity(), {"x": np.ones((2, 3), np.float32)}, order=("x",), outputs=("a", "b"))
