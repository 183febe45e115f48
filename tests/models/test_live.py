"""A program's own module: borrowed without a trace, and told apart by all that makes it what it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from repo_builder import models
from repo_builder.core.errors import ModelError
from repo_builder.core.samples import Batches
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.models import live
from repo_builder.models.running import run

SAMPLES = {"x": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)}
SCALE = 1.0


class Net(nn.Module):
    def __init__(self, slope: float = 0.1) -> None:
        super().__init__()
        self.layer, self.slope = nn.Linear(4, 2), slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.leaky_relu(self.layer(x), self.slope) * SCALE


class Other(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 0.0


def digest(module: nn.Module) -> str:
    own = models.borrow(module)
    specs = [TensorSpec(name=name, dtype=DType.FP32, shape=(size,)) for name, size in (("x", 4), ("y", 2))]
    return live.fingerprint(own, run(own, SAMPLES, Batches.of(specs[:1], specs[1:], {})))


def test_the_callers_module_stays_as_it_is() -> None:
    module = Net().train()
    own = models.borrow(module)
    assert module.training
    assert not own.training
    with torch.no_grad():
        own.layer.weight.zero_()
    assert module.layer.weight.abs().sum() > 0


def test_weights_code_and_what_neither_shows_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Net()
    first = digest(module)
    assert digest(module) == first
    changed = Net(0.2)
    changed.load_state_dict(module.state_dict())
    assert digest(changed) != first, "an attribute that is no weight"
    other = Other()
    other.load_state_dict(module.state_dict())
    assert digest(other) != first
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert digest(module) != first, "a number outside of the class"
    monkeypatch.undo()
    with torch.no_grad():
        module.layer.bias[0] += 1e-3
    assert digest(module) != first


class Locked(nn.Module):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise RuntimeError("holds a handle")


@pytest.mark.parametrize(("module", "said"), [("vgg", "str is no torch"), (Locked(), "holds a handle")])
def test_what_cannot_be_taken_is_refused(module: object, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        models.borrow(module)
