"""Jet substructure classifiers: small multilayer perceptrons described by a list of layers.

The input's standardisation is part of the network, so the exported graph takes the raw features and a client cannot
scale them differently. Logits are not clipped by a last ReLU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from repo_builder.core.tensors import Array

# Keywords of a layer list; a number is a linear layer with that many outputs.
_KEYWORDS: dict[str, Callable[[int], nn.Module]] = {"bn": nn.BatchNorm1d, "relu": lambda _: nn.ReLU()}


class Standardize(nn.Module):
    """(x - mean) / std for each feature, with statistics that travel in the checkpoint.

    Args:
        features: Number of features.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def fit(self, samples: Array) -> None:
        """Take the statistics of samples (n, features); a constant feature is centred and left unscaled."""
        wide = samples.astype(np.float64)
        std = wide.std(axis=0)
        self.mean.copy_(torch.from_numpy(wide.mean(axis=0)))
        self.std.copy_(torch.from_numpy(np.where(std > 0, std, 1.0)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the features of a batch (n, features) on a common scale."""
        return (features - self.mean) / self.std


class JetClassifier(nn.Module):
    """Raw features fp32 (n, features) → logits fp32 (n, last size of the list).

    Args:
        features: Number of features.
        layers: Sizes of linear layers, ``"bn"`` and ``"relu"``, in order.
    """

    def __init__(self, *, features: int, layers: Sequence[int | str]) -> None:
        super().__init__()
        self.standardize = Standardize(features)
        modules: list[nn.Module] = []
        size = features
        for item in layers:
            if isinstance(item, int):
                modules.append(nn.Linear(size, item))
                size = item
            else:
                modules.append(_KEYWORDS[item](size))
        self.layers = nn.Sequential(*modules)

    def fit_inputs(self, features: Array) -> None:
        """Take the standardisation of the training samples (n, features)."""
        self.standardize.fit(features)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of raw features."""
        logits: torch.Tensor = self.layers(self.standardize(features))
        return logits


def build(*, layers: Sequence[int | str], features: int = 16) -> JetClassifier:
    """Return a freshly initialised classifier, as in ``layers = [64, "bn", "relu", 5]``.

    Raises:
        ValueError: A layer is neither a positive number nor a keyword, or the last one is no linear layer.
    """
    for item in layers:
        if item not in _KEYWORDS and (not isinstance(item, int) or isinstance(item, bool) or item < 1):
            raise ValueError(f"layers has {item!r}; it takes sizes and {', '.join(map(repr, _KEYWORDS))}")
    if not layers or not isinstance(layers[-1], int):
        raise ValueError("layers must end with the number of classes, so that logits are not clipped")
    return JetClassifier(features=features, layers=layers)
