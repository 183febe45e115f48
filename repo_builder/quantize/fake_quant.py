"""The int8 layer in torch: round, clip and scale back in fp32, exact to the bit with ONNX.

ONNX's QuantizeLinear divides by the scale and rounds halves to even; torch's own fake quantization and those of the
back ends multiply by the scale's reciprocal, which lands on the other side of a half now and then, and one flipped
value spreads through the layers behind it. ``FakeQuantize`` divides, so what torch computes between layers is what ONNX
Runtime computes. It is also what is exported: its ONNX form is QuantizeLinear followed by DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from repo_builder.core.errors import QuantizeError
from repo_builder.core.tensors import Array
from repo_builder.quantize import Ranges
from repo_builder.quantize.calibrators import LARGEST, MIN_AMAX
from repo_builder.quantize.layers import channel_axis, layer_type

LOWEST = -128


class _QuantizeDequantize(torch.autograd.Function):
    """q = clip(round_half_even(x / scale), -128, 127); q · scale."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        x: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor,
        axis: int | None,
    ) -> torch.Tensor:
        if axis is not None:
            scale = scale.reshape([-1 if place == axis else 1 for place in range(x.dim())])
        return torch.clamp(torch.round(x / scale), LOWEST, LARGEST) * scale

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, zero_point: Any, axis: int | None) -> Any:  # noqa: ANN401 - torch's graph
        attributes = {} if axis is None else {"axis_i": axis}
        quantized = g.op("QuantizeLinear", x, scale, zero_point, **attributes)
        return g.op("DequantizeLinear", quantized, scale, zero_point, **attributes).setType(x.type())


class FakeQuantize(nn.Module):
    """Rounds a tensor to symmetric int8 and back.

    Args:
        amax: float32, what 127 stands for: () for one range, (channels,) for one each.
        axis: The channels' axis; None for one range.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, amax: Array, *, axis: int | None = None) -> None:
        super().__init__()
        self.axis = axis
        scale = torch.from_numpy(np.array(amax, np.float32)).clamp(min=MIN_AMAX) / LARGEST
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros(scale.shape, dtype=torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x on the int8 grid, fp32."""
        result: torch.Tensor = _QuantizeDequantize.apply(x, self.scale, self.zero_point, self.axis)  # type: ignore[no-untyped-call]
        return result


def quantize_layer(layer: nn.Module, ranges: Ranges) -> None:
    """Make a layer int8 in place: its inputs and its weight pass through ``FakeQuantize`` whenever it runs."""
    layer.input_quantizers = nn.ModuleList(FakeQuantize(amax) for amax in ranges.inputs)
    layer.register_forward_pre_hook(_quantize_inputs)
    if ranges.weight is not None:
        axis = channel_axis(layer_type(layer)) if ranges.weight.ndim else None
        parametrize.register_parametrization(layer, "weight", FakeQuantize(ranges.weight, axis=axis))


def quantize_layers(module: nn.Module, ranges: Mapping[str, Ranges]) -> None:
    """Make the named layers int8 in place."""
    for name, found in ranges.items():
        quantize_layer(module.get_submodule(name), found)


def _quantize_inputs(layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    quantizers: Any = layer.input_quantizers
    count = len(quantizers)
    if len(arguments) < count:
        raise QuantizeError(f"{type(layer).__name__} got its input by keyword, which quantizers do not see")
    return (*(quantizer(x) for quantizer, x in zip(quantizers, arguments[:count], strict=True)), *arguments[count:])
