"""BatchNorm goes into the layer that feeds it, and only where that is exact."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn

from repo_builder import quantize as stage  # noqa: E402
from repo_builder.core.errors import QuantizeError  # noqa: E402
from repo_builder.core.recipe import LayerRule, QuantizeSpec  # noqa: E402

SHAPES = {1: (3, 4, 9), 2: (3, 4, 9, 8), 3: (3, 4, 5, 6, 7)}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def norms(module: Any) -> list[str]:
    return [name for name, item in module.named_modules() if isinstance(item, nn.modules.batchnorm._BatchNorm)]


def same(module: Any, folded: Any, *inputs: Any) -> None:
    with torch.no_grad():
        torch.testing.assert_close(folded(*inputs), module(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_convolutions_fold_exactly(randomize, rank: int, transposed: bool, groups: int, bias: bool) -> None:
    torch.manual_seed(rank)
    kind = getattr(nn, f"{'ConvTranspose' if transposed else 'Conv'}{rank}d")
    module = randomize(nn.Sequential(kind(4, 6, 3, stride=2, groups=groups, bias=bias), NORMS[rank](6), nn.ReLU()))
    folded = stage.fold(module)
    assert norms(folded) == []
    assert isinstance(folded[1], nn.Identity)
    same(module, folded, torch.randn(SHAPES[rank]))


@pytest.mark.parametrize("affine", [False, True])
def test_a_linear_layer_folds_exactly(randomize, affine: bool) -> None:
    module = randomize(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7, affine=affine)))
    folded = stage.fold(module)
    assert norms(folded) == []
    same(module, folded, torch.randn(6, 5))


def test_the_original_keeps_its_statistics_parameters_and_mode(randomize) -> None:
    module = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).train()
    before = copy.deepcopy(module.state_dict())
    folded = stage.fold(module)
    assert module.training
    assert not folded.training
    assert norms(module) == ["1"]
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key


class Flow(nn.Module):
    """A convolution and a BatchNorm, joined in a way that the test chooses."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.other = nn.Conv2d(4, 4, 1)
        if how == "tied weight":
            self.other = nn.Conv2d(4, 4, 3, padding=1)
            self.other.weight = self.conv.weight

    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        if self.how == "output used elsewhere":
            return self.norm(y) + y
        if self.how == "layer runs twice":
            return self.norm(self.conv(torch.relu(y)))
        if self.how == "norm runs twice":
            return self.norm(self.norm(y))
        if self.how == "something between":
            return self.norm(torch.relu(y))
        return self.other(self.norm(y))


@pytest.mark.parametrize(
    "how", ["output used elsewhere", "layer runs twice", "norm runs twice", "something between", "tied weight"]
)
def test_nothing_is_folded_where_it_would_not_be_exact(randomize, how: str) -> None:
    module = randomize(Flow(how))
    folded = stage.fold(module)
    assert norms(folded) == ["norm"]
    same(module, folded, torch.randn(2, 4, 6, 6))


def test_flow_is_followed_whatever_the_order_of_definition(randomize) -> None:
    module = randomize(Flow("plain"))
    folded = stage.fold(module)
    assert norms(folded) == []
    same(module, folded, torch.randn(2, 4, 6, 6))


def test_a_norm_of_another_width_or_without_statistics_stays(randomize) -> None:
    over_time = randomize(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(3)))  # (n, 3, 5): normalizes axis 1
    assert norms(stage.fold(over_time)) == ["1"]
    by_batch = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)))
    assert norms(stage.fold(by_batch)) == ["1"]


class Untraceable(nn.Module):
    """Looks at values, which torch.fx cannot follow; may also look inside its Sequential."""

    def __init__(self, peeks: bool) -> None:
        super().__init__()
        self.peeks = peeks
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Any) -> Any:
        if float(x.abs().max()) > 1e6:
            return x
        return self.body(x) + (self.body[0](x) if self.peeks else 0)


def test_an_untraceable_network_folds_neighbours_in_a_sequential(randomize) -> None:
    module = randomize(Untraceable(peeks=False))
    folded = stage.fold(module)
    assert norms(folded) == []
    same(module, folded, torch.randn(2, 3, 6, 6))


def test_folding_that_was_not_exact_is_found_before_anything_is_quantized(randomize) -> None:
    module = randomize(Untraceable(peeks=True))
    samples = {"x": np.random.default_rng(0).standard_normal((4, 3, 6, 6)).astype(np.float32)}
    with pytest.raises(QuantizeError, match="folding BatchNorm changed the output") as raised:
        stage.quantize(module, QuantizeSpec(layers=(LayerRule(precision="int8"),)), samples, input_names=("x",), seed=0)
    assert "traceable by torch.fx" in str(raised.value)
