"""VGG7 for 32×32 colour images: three pairs of 3×3 convolutions with pooling behind each, and three linear layers.

The layout is that of the VGG-like network of Courbariaux et al., "Binarized Neural Networks" (2016), with ReLU. Module
names (``feature_layers.N``, ``classifier.{0,2}``, ``last_layer``) are those of the checkpoints that this project reads.
"""

from __future__ import annotations

import torch
from torch import nn

_CHANNELS = (128, 128, None, 256, 256, None, 512, 512, None)  # None: 2×2 max pooling
_HIDDEN = 1024
_LAST_SIDE = 4  # 32 pixels halved three times


class VGG(nn.Module):
    """VGG7: images fp32 (n, 3, 32, 32) → logits fp32 (n, classes).

    Args:
        width: Factor on every hidden layer's channels; 1.0 is the published width (14.0 M parameters).
        classes: Number of logits.
    """

    def __init__(self, *, width: float, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for size in _CHANNELS:
            if size is None:
                layers.append(nn.MaxPool2d(2))
                continue
            wide = _scaled(size, width)
            layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
            channels = wide
        hidden = _scaled(_HIDDEN, width)
        self.feature_layers = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * _LAST_SIDE**2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.last_layer = nn.Linear(hidden, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of images."""
        features = torch.flatten(self.feature_layers(image), 1)
        logits: torch.Tensor = self.last_layer(self.classifier(features))
        return logits


def build(*, width: float = 1.0, classes: int = 10) -> VGG:
    """Return a freshly initialised VGG7.

    Raises:
        ValueError: A width or number of classes that makes no network.
    """
    if width <= 0 or classes < 1:
        raise ValueError(f"width {width} and classes {classes} must be positive")
    return VGG(width=width, classes=classes)


def _scaled(size: int, width: float) -> int:
    return max(1, round(size * width))
