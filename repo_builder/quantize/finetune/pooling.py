"""Pools in torch, and what convolutions share with them: kernels, strides and padding as ONNX says them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Spatial:
    """How a window moves over an image.

    Attributes:
        strides: One a spatial axis.
        dilations: One a spatial axis.
        before: Padding in front of each axis.
        after: Padding behind each axis.
    """

    strides: list[int]
    dilations: list[int]
    before: list[int]
    after: list[int]

    @property
    def asymmetric(self) -> bool:
        """Whether an axis is padded on one side more than on the other, which torch's layers cannot say."""
        return self.before != self.after

    @property
    def symmetric(self) -> list[int]:
        """The padding that is left to torch's layer."""
        return [0] * len(self.before) if self.asymmetric else self.before

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """Return an image with the padding that is not left to torch's layer."""
        if not self.asymmetric:
            return x
        pairs = list(zip(self.before, self.after, strict=True))[::-1]
        return functional.pad(x, [side for pair in pairs for side in pair], value=value)


def spatial(x: Tensor, kernel: Sequence[int], attributes: Mapping[str, Any]) -> Spatial:
    """Return how a node's window moves over an image ``(n, channels, ...)``.

    Args:
        x: The image.
        kernel: The window's sizes.
        attributes: The node's.
    """
    rank = len(kernel)
    strides, dilations = list(attributes.get("strides", [1] * rank)), list(attributes.get("dilations", [1] * rank))
    pads = list(attributes.get("pads", [0] * 2 * rank))
    how = attributes.get("auto_pad", b"NOTSET")
    if how in (b"SAME_UPPER", b"SAME_LOWER"):
        spans = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
        whole = [
            max(0, (math.ceil(size / stride) - 1) * stride + span - size)
            for size, stride, span in zip(x.shape[2:], strides, spans, strict=True)
        ]
        less, more = [item // 2 for item in whole], [item - item // 2 for item in whole]
        pads = [*less, *more] if how == b"SAME_UPPER" else [*more, *less]
    return Spatial(strides=strides, dilations=dilations, before=pads[:rank], after=pads[rank:])


def _max_pool(values: list[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    x, kernel = values[0], attributes["kernel_shape"]
    given = spatial(x, kernel, attributes)
    run = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(kernel) - 1]
    padded = given.pad(x, -math.inf)
    found: Tensor = run(
        padded, kernel, given.strides, given.symmetric, given.dilations, bool(attributes.get("ceil_mode", 0))
    )
    return found


def _average_pool(values: list[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    x, kernel = values[0], attributes["kernel_shape"]
    given, counted = spatial(x, kernel, attributes), bool(attributes.get("count_include_pad", 0))
    if (given.asymmetric and not counted) or any(item != 1 for item in given.dilations):
        raise ValueError("its padding has no form in torch")
    run: Callable[..., Tensor] = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(kernel) - 1]
    return run(given.pad(x), kernel, given.strides, given.symmetric, bool(attributes.get("ceil_mode", 0)), counted)


def _over_space(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda values, _: function(values[0], tuple(range(2, values[0].dim())), True)


POOLS: dict[str, Callable[..., Tensor]] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _over_space(torch.mean),
    "GlobalMaxPool": _over_space(torch.amax),
    "MaxPool": _max_pool,
}
