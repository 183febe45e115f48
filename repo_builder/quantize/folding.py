"""BatchNorm into the layer before it, found by the network's real data flow.

In eval mode BatchNorm is y = g·(x − mean) + beta with g = gamma / sqrt(var + eps) for each channel, so behind a linear
layer x = W·v + b it is the layer with weight g·W and bias g·(b − mean) + beta. No optimizer can do this once
quantizers stand around W, so it comes first. Statistics are read, never changed.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import fx, nn

from repo_builder.quantize.layers import layer_type

Layer: TypeAlias = nn.Linear | nn.modules.conv._ConvNd
BatchNorm: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d

# BatchNorm → the layers whose channels it normalizes
_FOLDABLE: dict[type[nn.Module], tuple[str, ...]] = {
    nn.BatchNorm1d: ("Linear", "Conv1d", "ConvTranspose1d"),
    nn.BatchNorm2d: ("Conv2d", "ConvTranspose2d"),
    nn.BatchNorm3d: ("Conv3d", "ConvTranspose3d"),
}


def fold(module: nn.Module) -> nn.Module:
    """Return a copy in eval mode, each BatchNorm folded into the layer that feeds it where that is exact.

    A pair is folded where the layer feeds nothing but the BatchNorm, both run once, and neither shares its parameters.
    The flow is traced with ``torch.fx``; where a network cannot be traced, neighbours in a ``nn.Sequential`` are pairs.
    A folded BatchNorm becomes ``nn.Identity``, so qualified names stay what they were.
    """
    folded = copy.deepcopy(module).eval()
    for layer_name, norm_name in _pairs(folded):
        layer, norm = folded.get_submodule(layer_name), folded.get_submodule(norm_name)
        if isinstance(layer, Layer) and isinstance(norm, BatchNorm) and _fits(folded, layer, norm):
            _fold_into(layer, norm)
            parent, _, child = norm_name.rpartition(".")
            setattr(folded.get_submodule(parent), child, nn.Identity())
    return folded


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Return (layer, BatchNorm) names where the one's only consumer is the other."""
    try:
        graph = fx.Tracer().trace(module)
    except Exception:  # whatever a user's forward does with a proxy
        return list(_neighbours(module))
    calls = [node for node in graph.nodes if node.op == "call_module"]
    runs = Counter(str(node.target) for node in calls)
    pairs = []
    for node in calls:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        names = str(before.target), str(node.target)
        if type(module.get_submodule(names[1])) in _FOLDABLE and all(runs[name] == 1 for name in names):
            pairs.append(names)
    return pairs


def _neighbours(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Return neighbours in every Sequential."""
    for name, item in module.named_modules():
        if type(item) is nn.Sequential:
            children = [f"{name}.{child}" if name else child for child, _ in item.named_children()]
            yield from pairwise(children)


def _fits(root: nn.Module, layer: Layer, norm: BatchNorm) -> bool:
    kind = layer_type(layer)
    if kind not in _FOLDABLE.get(type(norm), ()) or norm.running_mean is None or hasattr(layer, "parametrizations"):
        return False
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    own = {id(item) for part in (layer, norm) for item in part.parameters()}
    places = Counter(id(item) for part in root.modules() for item in part._modules.values())
    uses = Counter(id(item) for part in root.modules() for item in part._parameters.values() if id(item) in own)
    alone = places[id(layer)] == places[id(norm)] == 1 and all(count == 1 for count in uses.values())
    return channels == norm.num_features and alone


@torch.no_grad()
def _fold_into(layer: Layer, norm: BatchNorm) -> None:
    """Set the layer's weight and bias, computed in float64."""
    gain = (_statistics(norm.running_var) + norm.eps).rsqrt()
    if norm.affine:
        gain = gain * norm.weight.double()
    bias = torch.zeros_like(gain) if layer.bias is None else layer.bias.double()
    bias = (bias - _statistics(norm.running_mean)) * gain
    if norm.affine:
        bias = bias + norm.bias.double()
    weight = layer.weight.double()
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):  # (in, out / groups, ...), the inputs in groups
        gains = gain.reshape(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
        weight = (weight.reshape(layer.groups, -1, *weight.shape[1:]) * gains).flatten(0, 1)
    else:
        weight = weight * gain.reshape(-1, *[1] * (weight.dim() - 1))
    dtype, trained = layer.weight.dtype, layer.weight.requires_grad
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=trained)
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=trained)


def _statistics(values: torch.Tensor | None) -> torch.Tensor:
    if values is None:
        raise ValueError("a BatchNorm without statistics cannot be folded")
    return values.double()
