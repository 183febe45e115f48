"""Who rounds while a model is fine-tuned: a back end's fake quantizer, or a plain one of torch's operators.

All do the same to values that are counted in steps: round to whole steps and clip to the codes that there are; a
gradient passes where nothing was clipped. The step's size is ours to multiply with (``fake.py``), so that it can be
trained through every back end alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from repo_builder.quantize.finders import named_in

Rounding = Callable[[Tensor], Tensor]

# quantize.backend → ("module:function" that makes a rounding, the extra that installs what it imports)
ROUNDINGS: dict[str, tuple[str, str]] = {
    "onnxruntime": ("repo_builder.quantize.finetune.rounding:plain", "build"),
    "modelopt": ("repo_builder.quantize.modelopt:rounding", "build"),
    "pytorch-quantization": ("repo_builder.quantize.pytorch_quantization:rounding", "pytorch-quantization"),
}


class RoundingMaker(Protocol):
    """A back end: makes roundings."""

    def __call__(self, *, bits: int, unsigned: bool, narrow: bool) -> Rounding:
        """Return a rounding.

        Args:
            bits: 8, or 7 for codes of half as many steps.
            unsigned: Whether codes start at 0.
            narrow: Whether the lowest of signed codes is left out, so that there are as many to either side of 0.
        """


def backend(name: str) -> RoundingMaker:
    """Return a back end by name.

    Raises:
        RecipeError: There is none of that name.
        MissingDependency: Its library is not installed.
    """
    maker: RoundingMaker = named_in(ROUNDINGS, name)
    return maker


def code_limits(*, bits: int, unsigned: bool, narrow: bool) -> tuple[int, int]:
    """Return the lowest and the highest code; see ``RoundingMaker``."""
    high: int = 2 ** (bits - (not unsigned)) - 1
    return (0 if unsigned else -high - (not narrow)), high


class _Straight(torch.autograd.Function):
    """Rounding whose gradient is 1."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


def plain(*, bits: int, unsigned: bool, narrow: bool) -> Rounding:
    """Return a rounding of torch's own operators; see ``RoundingMaker``."""
    low, high = code_limits(bits=bits, unsigned=unsigned, narrow=narrow)

    def rounded(x: Tensor) -> Tensor:
        found: Tensor = _Straight.apply(x.clamp(low, high))  # type: ignore[no-untyped-call]
        return found

    return rounded
