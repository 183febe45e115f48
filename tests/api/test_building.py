"""``rb.build`` with what a program holds: a module, arrays, a loader; its key covers weights and data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import repo_builder as rb
from repo_builder.core import artifacts
from repo_builder.core.artifacts import EngineArtifact

RECIPE = """
name = "mine"
[model]
source = "nowhere:make"
[[model.inputs]]
name = "b"
dtype = "fp32"
shape = [4]
[[model.inputs]]
name = "a"
dtype = "fp32"
shape = [4]
[[model.outputs]]
name = "scores"
dtype = "fp32"
shape = [3]
[data]
source = "nowhere.npz"
test = 0.4
calibration = 24
[[quantize.layers]]
type = "Linear"
precision = "int8"
[[quantize.layers]]
type = "Conv*"
precision = "int8"
optional = true
"""


class Net(nn.Module):
    """Asymmetric in its arguments, so that mixing them up shows."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.two(torch.relu(self.one(a - 2 * b)))


def test_a_live_module_and_a_loader_are_built_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(RECIPE, encoding="utf-8")
    torch.manual_seed(0)
    module = Net().train()
    a, b = torch.randn(2, 120, 4)
    with torch.no_grad():
        labels = Net.forward(module, a, b).argmax(1)
    recipe = rb.Recipe.load("mine.toml")

    def build(data: object, module: nn.Module = module) -> rb.BuildResult:
        return rb.build(recipe, model=module, data=data, target="onnxruntime")

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(b, a, labels), batch_size=50)
    made = build(loader)
    assert made.skipped == ()
    assert made.engine.accuracy[0].top1 == 1.0, "inputs go by the names of forward's arguments"
    assert made.exported.details.weights == "a live Net"
    assert module.training, "the caller's module is left as it is"
    assert [item.name for item in made.engine.layers] == ["one", "two"], "the names are those of the user's model"
    kept = artifacts.read(EngineArtifact, Path("build/mine/engine")).recipe.data.source
    with np.load(kept) as stored:
        np.testing.assert_array_equal(stored["a"], a.numpy())

    assert build((b, a, labels)).skipped == ("export", "compile", "place"), "the same samples in another form"
    with torch.no_grad():
        module.two.bias[0] += 0.5
    assert "export" not in build((b, a, labels)).skipped, "other weights"
    assert "export" not in build({"a": a, "b": b + 1, "y": labels}).skipped, "other data"

    with pytest.raises(rb.RepoBuilderError, match="brings its weights"):
        rb.build(recipe, model=module, data=(b, a, labels), checkpoint="w.safetensors")
    with pytest.raises(rb.RepoBuilderError, match="nowhere"):
        rb.build(recipe, data="nowhere.csv")
