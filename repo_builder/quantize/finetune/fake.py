"""Fake quantization of what a placement quantizes: the same tensors and weights, with the same codes and steps.

A step is a number that is multiplied with: x → step · round(x / step), where ``round`` is the back end's
(rounding.py). So its gradient is that of LSQ (Esser et al., "Learned Step Size Quantization", ICLR 2020): round(x/step)
− x/step inside the range, and the last code outside. What is trained is the logarithm of the step's factor against
calibration's, so that it stays above 0 and one learning rate fits tensors of all sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from repo_builder.core.errors import QuantizeError
from repo_builder.core.tensors import Array
from repo_builder.quantize.finetune.rounding import Rounding, RoundingMaker
from repo_builder.quantize.placement import Profile
from repo_builder.quantize.placement.choose import Choice
from repo_builder.quantize.placement.codes import Codes, codes_for
from repo_builder.quantize.placement.place import decide
from repo_builder.quantize.placement.scales import bound_to_gates, sharing
from repo_builder.quantize.placement.weights import channel_axis
from repo_builder.quantize.ranges import Ranges, TensorRange, WeightRange
from repo_builder.quantize.rules import LayerPlan


class Fake(nn.Module):
    """Fake-quantizes tensors that share a scale, or a weight.

    Args:
        step: One step, float32 () or, for a weight with a scale a channel, (channels, 1, ...).
        zero_point: The code of 0, counted from the lowest code that the rounding knows as such.
        rounding: Rounds and clips whole steps.
        largest: What a step may become at most; infinite where nothing bounds it.
        fixed: Whether it has to stay what it is.
    """

    def __init__(
        self, step: Array, zero_point: int, rounding: Rounding, *, largest: float = math.inf, fixed: bool = False
    ) -> None:
        super().__init__()
        self.largest, self.fixed = largest, fixed
        self.calibrated: Tensor
        self.register_buffer("calibrated", torch.from_numpy(np.array(step, np.float32)), persistent=False)
        self.change = nn.Parameter(torch.zeros_like(self.calibrated))  # logarithm of the factor
        self._zero_point, self._rounding = zero_point, rounding

    def step(self) -> Tensor:
        """Return one step as it is now."""
        return self.calibrated * self.change.exp()

    def settle(self) -> None:
        """Bring the step back to where it may be, after a change of it."""
        if self.fixed:
            with torch.no_grad():
                self.change.zero_()
        if math.isfinite(self.largest):
            with torch.no_grad():
                self.change.clamp_(max=(self.largest / self.calibrated).log())

    def forward(self, x: Tensor) -> Tensor:
        """Return values that codes stand for, the nearest to each."""
        step = self.step()
        if not self._zero_point:
            return self._rounding(x / step) * step
        return (self._rounding(x / step + self._zero_point) - self._zero_point) * step


@dataclass(frozen=True, kw_only=True)
class Fakes:
    """The fake quantizers of a placement.

    Attributes:
        choice: Where Q/DQ stands.
        codes: Chosen tensor → its codes as calibrated.
        modules: All of them.
        tensors: Chosen tensor → its number among them.
        weights: Layer → its weight's number.
        steps: The largest weight code.
    """

    choice: Choice
    codes: Mapping[str, Codes]
    modules: Sequence[Fake]
    tensors: Mapping[str, int]
    weights: Mapping[str, int]
    steps: int

    def ranges(self, before: Ranges, *, learned: bool) -> Ranges:
        """Return the ranges whose codes are the fake quantizers' as they are now.

        Args:
            before: Those that they were made of.
            learned: Whether they have been trained.
        """
        tensors = {}
        for name, place in self.tensors.items():
            module, codes = self.modules[place], self.codes[name]
            step = min(float(module.step().detach()), module.largest)  # which float32 may miss by its last digit
            limits = (0, 255) if codes.dtype == "uint8" else (-127, 127)
            low, high = (step * (limit - codes.zero_point) for limit in limits)
            found_by = "learned" if learned else before.tensors[name].calibrator
            tensors[name] = TensorRange(low=low, high=high, amax=max(-low, high), calibrator=found_by)
        weights = {}
        for layer, place in self.weights.items():
            shape = before.weights[layer].amax.shape
            step_of = self.modules[place].step().detach().cpu().numpy().reshape(shape)
            weights[layer] = WeightRange(amax=np.asarray(step_of * self.steps, np.float32))
        return Ranges(tensors=tensors, weights=weights)


def fakes(
    model: onnx.ModelProto, plans: Sequence[LayerPlan], ranges: Ranges, profile: Profile, make: RoundingMaker
) -> Fakes:
    """Return the fake quantizers of what ``placement.place`` would write of the same arguments.

    Layers whose input's range is found in every run, and what is to be fp16, are left in fp32.

    Args:
        model: The fp32 graph, as for ``place``.
        plans: What each layer is to become.
        ranges: What calibration found.
        profile: The target.
        make: The back end.

    Raises:
        QuantizeError: As ``place``; or no layer is int8.
    """
    choice, codes = decide(model, plans, ranges, profile)
    layers: dict[str, onnx.NodeProto] = {}
    for place in sorted(choice.layers.int8):
        layers.setdefault(choice.layers.plans[place].name, choice.index.nodes[place])
    if not layers:
        hint = "give layers precision int8 with a calibrator that is not dynamic, or leave [finetune] out"
        raise QuantizeError(f"no layer of it would be int8 on {profile.name}", where="finetune", hint=hint)
    roundings = {
        "uint8": make(bits=8, unsigned=True, narrow=False),
        "int8": make(bits=8, unsigned=False, narrow=False),
    }
    of_weights = make(bits=profile.weight_steps.bit_length() + 1, unsigned=False, narrow=True)
    modules: list[Fake] = []
    tensors: dict[str, int] = {}
    fixed = bound_to_gates(choice, codes)
    for group in sharing(choice):
        first = codes[group[0]]
        tensors.update(dict.fromkeys(group, len(modules)))
        largest = min(_clipped_at(choice, name, first) for name in group)
        step, bound = np.asarray(first.scale), not fixed.isdisjoint(group)
        modules.append(Fake(step, first.zero_point, roundings[first.dtype], largest=largest, fixed=bound))
    weights: dict[str, int] = {}
    for layer, node in layers.items():
        weights[layer] = len(modules)
        modules.append(Fake(_weight_step(choice, node, ranges.weights[layer].amax, profile), 0, of_weights))
    return Fakes(
        choice=choice, codes=codes, modules=modules, tensors=tensors, weights=weights, steps=profile.weight_steps
    )


def _clipped_at(choice: Choice, tensor: str, codes: Codes) -> float:
    """Return the largest step of a tensor that a Clip makes: codes beyond where it ends would stand for nothing.

    They would also keep a runtime from making the Clip a part of the Q behind it.
    """
    index = choice.index
    node = index.nodes[index.makers[tensor]] if tensor in index.makers else None
    if node is None or node.op_type != "Clip" or len(node.input) < 3 or codes.dtype != "uint8" or codes.zero_point:
        return math.inf
    high = index.value(node.input[2])
    if high is None or high.size != 1 or not 0 < float(high.reshape(())) < math.inf:
        return math.inf
    bound = float(high.reshape(()))
    return max(float(codes_for(0.0, bound, bound, "uint8").scale), float(codes.scale))


def _weight_step(choice: Choice, node: onnx.NodeProto, amax: Array, profile: Profile) -> Array:
    """Return a weight's step, shaped to be multiplied with it; a channel of zeros is exact with any."""
    step = np.asarray(np.abs(amax), np.float64) / profile.weight_steps
    step = np.where(step > 0, step, step.max() or 1.0)
    if not step.ndim:
        return step
    weight = np.asarray(choice.index.value(node.input[1]))
    return step.reshape([-1 if place == channel_axis(node) else 1 for place in range(weight.ndim)])
