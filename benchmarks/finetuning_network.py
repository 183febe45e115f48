"""A small depthwise network for 32×32 images, after MobileNetV2: what 8 bits with one scale a tensor are hardest on."""

from __future__ import annotations

from torch import Tensor, nn

# expansion, channels, blocks, stride of the first
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 3, 2), (6, 96, 2, 1), (6, 160, 2, 2))
_LAST = 640


def _layer(inner: int, outer: int, size: int, *, stride: int = 1, groups: int = 1, clip: bool = True) -> nn.Sequential:
    """Return convolution, BatchNorm and, unless it ends a block, ReLU6."""
    convolution = nn.Conv2d(inner, outer, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outer), *([nn.ReLU6()] if clip else []))


class Block(nn.Module):
    """Inverted residual: wider by a 1×1 convolution, depthwise 3×3, narrower by another 1×1.

    Args:
        inner: Channels of the input.
        outer: Channels of the output.
        expansion: How many times as wide it is inside.
        stride: Of the depthwise convolution.
    """

    def __init__(self, inner: int, outer: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        wide = inner * expansion
        self.adds = stride == 1 and inner == outer
        self.layers = nn.Sequential(
            *([_layer(inner, wide, 1)] if expansion > 1 else []),
            _layer(wide, wide, 3, stride=stride, groups=wide),
            _layer(wide, outer, 1, clip=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        found: Tensor = self.layers(x)
        return x + found if self.adds else found


class Depthwise(nn.Module):
    """Images fp32 (n, 3, 32, 32) → logits fp32 (n, classes).

    Args:
        width: Factor on every layer's channels.
        classes: Number of logits.
    """

    def __init__(self, *, width: float, classes: int) -> None:
        super().__init__()
        channels = round(32 * width)
        layers: list[nn.Module] = [_layer(3, channels, 3)]
        for expansion, size, blocks, first in _STAGES:
            for place in range(blocks):
                outer = round(size * width)
                layers.append(Block(channels, outer, expansion=expansion, stride=first if place == 0 else 1))
                channels = outer
        last = round(_LAST * width)
        self.features = nn.Sequential(*layers, _layer(channels, last, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(last, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        found: Tensor = self.classifier(self.features(image))
        return found


def depthwise(*, width: float = 1.0, classes: int = 10) -> Depthwise:
    """Return a freshly initialised network."""
    return Depthwise(width=width, classes=classes)
