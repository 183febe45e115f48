"""What counts as a layer in a torch module, and ``Add``."""

from __future__ import annotations

import torch
from torch import nn

from repo_builder.quantize.rules import WEIGHTED, WEIGHTLESS


class Add(nn.Module):
    """The sum of two tensors, as a layer: use it for a residual sum whose inputs may become int8.

    ``x + y`` in a ``forward`` is invisible to layer rules; ``self.add = Add()`` and ``self.add(x, y)`` is a layer of
    type ``Add`` with a name.
    """

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return x + y, broadcast as torch does."""
        return x + y


_CLASSES: dict[str, type[nn.Module]] = {
    name: Add if name == "Add" else getattr(nn, name) for name in sorted(WEIGHTED | WEIGHTLESS)
}


def layer_type(module: nn.Module) -> str:
    """Return the layer type that rules know a module by: ``Conv2d`` also for a subclass of it, else its class name."""
    known = [name for name, kind in _CLASSES.items() if isinstance(module, kind)]
    return known[0] if known else type(module).__name__


def find_layers(module: nn.Module) -> list[tuple[str, str]]:
    """Return (qualified name, type) of every layer and of every other module without children, in definition order.

    A module that is registered under several names appears under the first.
    """
    found = []
    inside: set[str] = set()
    for name, item in module.named_modules():
        if not name:
            continue  # a network that is one bare layer has no name to select it by
        kind = layer_type(item)
        if kind in _CLASSES:
            inside.update(f"{name}.{child}" for child, _ in item.named_modules() if child)
            found.append((name, kind))
        elif name not in inside and next(item.children(), None) is None:
            found.append((name, kind))
    return found


def channel_axis(kind: str) -> int:
    """Return the axis of a weight that counts output channels: 1 for transposed convolutions, else 0."""
    return 1 if kind.startswith("ConvTranspose") else 0


def input_count(kind: str) -> int:
    """Return how many of a layer's inputs are activations to quantize."""
    return 2 if kind == "Add" else 1
