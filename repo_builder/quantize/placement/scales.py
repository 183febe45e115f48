"""From ranges to the codes of each tensor; tensors that share a scale share the widest range among them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from repo_builder.core.errors import QuantizeError
from repo_builder.quantize.placement.choose import Choice
from repo_builder.quantize.placement.codes import LEAST_SCALE, Codes, codes_for
from repo_builder.quantize.ranges import TensorRange


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
        found.update(dict.fromkeys(group, codes_for(low, high, amax, dtype)))
    return {tensor: found[tensor] for tensor in choice.tensors}


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
