"""Weights and biases of int8 layers as numbers: Gemm's alpha and beta worked in, channels' scales, codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from repo_builder.core.errors import QuantizeError
from repo_builder.core.graphs import attribute
from repo_builder.core.tensors import Array
from repo_builder.quantize.placement.codes import LEAST_SCALE
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.ranges import WeightRange

LARGEST = 127  # the code that repairs choose codes for
# Half of what int32 holds is left to the sum of products.
_BIAS_STEPS = 2.0**30


@dataclass(frozen=True, kw_only=True)
class Weights:
    """An int8 layer's constants.

    Attributes:
        weight: float32, as the node takes it; ``alpha`` worked in.
        axis: The axis that counts channels, None for one scale.
        scale: float32 (channels,) or ().
        bias: float64 (output channels,), ``beta`` worked in; None where there is none, or none of that shape.
        rest: A bias that is not one number a channel, to be added behind the layer: its name and its factor.
        chosen: int8, as the weight: codes that a repair chose, and the channels that have the step that they were
            chosen for (bool, (channels,) or ()); None where the nearest codes are taken.
    """

    weight: Array
    axis: int | None
    scale: Array
    bias: Array | None
    rest: tuple[str, float] | None
    chosen: tuple[Array, Array] | None = None

    def codes(self, steps: int) -> Array:
        """Return the weight's int8 codes."""
        nearest = np.asarray(np.clip(np.rint(self.weight / self.along(self.scale)), -steps, steps), np.int8)
        if self.chosen is None:
            return nearest
        codes, held = self.chosen
        return np.where(self.along(held), codes, nearest)

    def on_grid(self, steps: int) -> Array:
        """Return the weight, float32, for a target that rounds it itself: chosen codes as the values that they mean."""
        if self.chosen is None:
            return self.weight
        grid = self.codes(steps) * self.along(self.scale)
        return np.where(self.along(self.chosen[1]), grid, self.weight).astype(np.float32)

    def along(self, values: Array) -> Array:
        """Return one value a channel, shaped as the weight is stored."""
        if self.axis is None:
            return values
        return values.reshape([-1 if place == self.axis else 1 for place in range(self.weight.ndim)])


def channel_axis(node: onnx.NodeProto) -> int:
    """Return the axis of a node's weight, as it is stored, that counts output channels (in one group)."""
    if node.op_type == "Conv":
        return 0
    return int(node.op_type != "Gemm" or not attribute(node, "transB", 0))


def weights_of(
    index: Index,
    node: onnx.NodeProto,
    kept_of: WeightRange,
    *,
    steps: int,
    step: float | None,
    layer: str,
    added: Array | None = None,
) -> Weights:
    """Return a layer's constants.

    Args:
        index: The graph.
        node: The layer's node.
        kept_of: What is kept of the weight, and what repairs made of the layer.
        steps: The largest weight code.
        step: The scale of the layer's input where biases are int32, with channels' scales widened to hold them; None
            where biases stay float.
        layer: The layer's name, for messages.
        added: A constant, one number a channel, that the node behind a MatMul adds as its bias.

    Raises:
        QuantizeError: The range does not fit the weight, or is not finite.
    """
    weight, axis = np.asarray(index.value(node.input[1]), np.float32), channel_axis(node)
    alpha = attribute(node, "alpha", 1) if node.op_type == "Gemm" else 1.0
    channels = weight.shape[axis]
    kept = np.abs(np.asarray(kept_of.amax, np.float64)) * abs(alpha)
    if kept.shape not in ((), (channels,)):
        raise QuantizeError(f"its weight has {channels} channels and {kept.size} ranges", where=layer)
    if not np.isfinite(kept).all() or not np.isfinite(weight).all():
        raise QuantizeError("its weight is not finite", where=layer, hint="leave the layer in fp32")
    groups = int(attribute(node, "group", 1)) if node.op_type == "ConvTranspose" else 1
    bias, rest = bias_of(index, node, channels * groups) if added is None else (added.astype(np.float64).ravel(), None)
    if kept_of.shift is not None:
        bias = kept_of.shift.astype(np.float64) + (0.0 if bias is None else bias)
        if bias.shape != (channels * groups,) or not np.isfinite(bias).all():
            raise QuantizeError("the correction of its bias does not fit", where=layer, hint="build again with --force")
    scale = kept / steps
    if step is not None and bias is not None:
        steepest = np.abs(bias).reshape(groups, channels).max(axis=0) if kept.ndim else np.abs(bias).max(initial=0)
        scale = np.maximum(scale, steepest / (step * _BIAS_STEPS))
    least = LEAST_SCALE if step is None else max(LEAST_SCALE, 2.0**-125 / step)
    if 0 < scale.max() < least:
        text = f"its weight never exceeds {kept.max():.1e}, too little for a scale"
        raise QuantizeError(text, where=layer, hint="leave the layer in fp32")
    # A channel of zeros is exact with any scale; the largest of the layer keeps all in one order of magnitude.
    scale = np.where(scale >= least, scale, scale.max() or 1.0)
    chosen = None
    if kept_of.codes is not None and steps == LARGEST:
        if kept_of.codes.shape != weight.shape:
            raise QuantizeError("its rounded weight does not fit", where=layer, hint="build again with --force")
        chosen = (kept_of.codes if alpha > 0 else -kept_of.codes, scale == kept / steps)
    return Weights(
        weight=weight if alpha == 1 else weight * np.float32(alpha),
        axis=axis if kept.ndim else None,
        scale=scale.astype(np.float32),
        bias=bias,
        rest=rest,
        chosen=chosen,
    )


def has_rest(index: Index, node: onnx.NodeProto, channels: int) -> bool:
    """Whether a node's bias is not one constant a channel, so that it is added behind the int8 layer."""
    return bias_of(index, node, channels)[1] is not None


def bias_of(index: Index, node: onnx.NodeProto, channels: int) -> tuple[Array | None, tuple[str, float] | None]:
    """Return a node's bias as one number a channel, or else its name and factor."""
    if node.op_type == "MatMul" or len(node.input) < 3 or not node.input[2]:
        return None, None
    beta = attribute(node, "beta", 1) if node.op_type == "Gemm" else 1.0
    value = index.value(node.input[2])
    if value is None or (value.size not in (1, channels) or (value.size > 1 and value.shape[-1] != channels)):
        return None, (node.input[2], beta)
    return np.broadcast_to(value.astype(np.float64).ravel() * beta, (channels,)), None
