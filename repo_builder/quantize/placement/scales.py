"""From ranges to the codes of each tensor; tensors that share a scale share the widest range among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from repo_builder.core.errors import QuantizeError
from repo_builder.quantize.placement.choose import Choice
from repo_builder.quantize.placement.codes import LEAST_SCALE, Codes, codes_for
from repo_builder.quantize.placement.lower import Gate, gate, gated
from repo_builder.quantize.ranges import TensorRange

# Of a hard swish's input whose codes reach down to where it starts: how much wider they may be (1.9 dB), and how many
# steps there are at least up to 0, as their number is a whole one (at 16, 6 % or 0.5 dB).
_DEAREST, _FEWEST_STEPS = 1.25, 16


def tensor_codes(
    choice: Choice, ranges: Mapping[str, TensorRange], dtype: Literal["uint8", "int8"]
) -> dict[str, Codes]:
    """Return the codes of all tensors that carry Q/DQ.

    Tensors that have to share a scale share the widest range among them. A tensor of which a float reader sees the
    rounded values (its demand is then ``max``) covers all that calibration saw, whatever range is at hand.

    Raises:
        QuantizeError: A range is not finite, or too small for float32.
    """
    found = {}
    for group in sharing(choice):
        bounds = []
        for tensor in group:
            span = ranges[tensor]
            everything = any(spec.calibrator == "max" for spec in choice.demands[tensor][0])
            bounds.append((span.low, span.high, max(abs(span.low), abs(span.high)) if everything else span.amax))
            _check(choice, tensor, bounds[-1])
        low, high, amax = (
            min(item[0] for item in bounds),
            max(item[1] for item in bounds),
            max(item[2] for item in bounds),
        )
        found.update(dict.fromkeys(group, _codes(choice, group, (low, high, amax), dtype)))
    _gates(choice, found)
    return {tensor: found[tensor] for tensor in choice.tensors}


def _codes(
    choice: Choice, group: Sequence[str], bounds: tuple[float, float, float], dtype: Literal["uint8", "int8"]
) -> Codes:
    """Return the codes of tensors that share a scale.

    Where a hard sigmoid or hard swish reads one, what it is 0 up to is a code, as ``lower.py`` wants it, if that costs
    little. What nothing but these reads is cut there: below, all of them are 0; above its end a hard sigmoid is 1.
    """
    index, plain = choice.index, codes_for(*bounds, dtype)
    readers = [index.nodes[place] for tensor in group for place in index.readers[tensor] if place in choice.glue]
    found = {gate(node) for node in readers} - {None}
    makers = (index.makers.get(tensor, -1) for tensor in group)
    folds = any(place in choice.glue and choice.glue[place].pairs == "output" for place in makers)
    (one,) = found if len(found) == 1 else (None,)
    if one is None or folds or dtype != "uint8":  # a Relu or Clip is folded into codes that start at 0
        return plain
    low, high, amax = bounds
    least, most = min(max(low, -amax), 0.0), max(min(high, amax), 0.0)
    alone = len(group) == 1 and _stops(choice, group[0], one)
    sigmoids = alone and all(node.op_type == "HardSigmoid" for node in readers)
    first = -one.start if alone else min(least, -one.start)
    last = min(most, one.end) if sigmoids else most
    exact = one.start * 255 / (last - first)
    # The last step up to a hard sigmoid's 1 is left out rather than cut off by a Clip. The range that codes have gives
    # the same codes again, whatever its last digits.
    steps = math.ceil(exact * (1 - 1e-6)) if sigmoids and most >= one.end else int(exact * (1 + 1e-6))
    if steps < _FEWEST_STEPS or (last - first > _DEAREST * (most - least) and not sigmoids):
        return plain
    scale = np.float32(one.start / steps)
    zero = steps if alone else min(255, max(steps, round(-first / float(scale))))
    return Codes(scale=scale, zero_point=zero, dtype=dtype)


def _stops(choice: Choice, tensor: str, one: Gate) -> bool:
    """Whether what a tensor holds below a hard sigmoid's start makes no difference: all that reads it makes 0 of it."""
    index = choice.index
    if tensor in index.outputs or tensor in index.inner:
        return False
    gates = {index.nodes[place].output[0] for place in index.readers[tensor] if gate(index.nodes[place]) == one}
    for place in index.readers[tensor]:
        node = index.nodes[place]
        product = node.op_type == "Mul" and any(name in gates for name in node.input)
        if place not in choice.glue or not (gate(node) == one or product):
            return False
    return True


def _gates(choice: Choice, found: dict[str, Codes]) -> None:
    """Give a hard sigmoid's output, and what only moves it, the codes of its input, in place, where those do."""
    index = choice.index
    groups = {tensor: group for group in sharing(choice) for tensor in group}
    for place, form in choice.glue.items():
        output, tensor = index.nodes[place].output[0], index.nodes[place].input[0]
        if form.lowered != "hard sigmoid" or output not in found or tensor not in found:
            continue
        values = gated(found[tensor], gate(index.nodes[place]))
        others = (index.makers.get(item, -1) for item in groups[output] if item != output)
        if values is not None and all(item in choice.glue and choice.glue[item].one_scale for item in others):
            found.update(dict.fromkeys(groups[output], values))


def _check(choice: Choice, tensor: str, bounds: tuple[float, float, float]) -> None:
    """Refuse a range that 8 bits cannot cover."""
    index = choice.index
    layers = [choice.layers.plans[place].name for place in index.readers[tensor] if place in choice.layers.int8]
    maker = index.makers.get(tensor)
    where = next(iter(layers), None) or (index.nodes[maker].name if maker is not None else tensor) or tensor
    what = "its input" if layers else f"the tensor '{tensor}'"
    hint = "leave the layer in fp32"
    if not all(math.isfinite(item) for item in bounds):
        raise QuantizeError(f"{what} is not finite on calibration data", where=where, hint=hint)
    if layers and bounds[2] == 0:
        hint = "leave the layer in fp32, or calibrate on more samples"
        text = "its input is zero in every calibration sample, which leaves no range for int8"
        raise QuantizeError(text, where=where, hint=hint)
    if 0 < bounds[2] < LEAST_SCALE * 255:
        raise QuantizeError(f"{what} never exceeds {bounds[2]:.1e}, too little for a scale", where=where, hint=hint)


def bound_to_gates(choice: Choice, codes: Mapping[str, Codes]) -> set[str]:
    """Return the tensors whose step hard sigmoids fix: another one would have no code at their start."""
    index = choice.index
    found: set[str] = set()
    for place in choice.glue:
        node = index.nodes[place]
        values = gated(codes[node.input[0]], gate(node)) if gate(node) and node.input[0] in codes else None
        if values is not None:
            found.update((node.input[0], *(name for name in node.output if codes.get(name) == values)))
    return found


def sharing(choice: Choice) -> list[list[str]]:
    """Return the chosen tensors in groups that share a scale, in graph order."""
    leader = {tensor: tensor for tensor in choice.tensors}

    def find(tensor: str) -> str:
        while leader[tensor] != tensor:
            tensor = leader[tensor]
        return tensor

    for place, form in choice.glue.items():
        tensors = [*choice.int8_reads(place), *choice.index.nodes[place].output]
        members = [tensor for tensor in tensors if tensor in leader]
        if form.one_scale:
            for tensor in members[1:]:
                leader[find(tensor)] = find(members[0])
    groups: dict[str, list[str]] = {}
    for tensor in choice.tensors:
        groups.setdefault(find(tensor), []).append(tensor)
    return list(groups.values())
