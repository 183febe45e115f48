"""pytorch-quantization, ModelOpt's predecessor, as a back end: its TensorQuantizers stand in the layers and collect.

The calibrators are ours, in the place where a TensorQuantizer keeps its own: the library's mse needs a GPU and its
entropy takes minutes. Its layer classes are not used either, as they pad circular convolutions in a way that torch has
given up since; a TensorQuantizer works on any layer's input and weight.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from absl import logging
from pytorch_quantization.nn import TensorQuantizer
from pytorch_quantization.tensor_quant import QuantDescriptor
from torch import nn
from torch.nn.utils import parametrize

from repo_builder.core.recipe import InputQuantizer, WeightQuantizer
from repo_builder.core.tensors import Array
from repo_builder.quantize import LayerPlan, Ranges
from repo_builder.quantize.layers import channel_axis, input_count
from repo_builder.quantize.plugged import PluggedCalibrator, ranges_of, run


class PytorchQuantizationQuantizer:
    """See ``repo_builder.quantize.Quantizer``."""

    def __call__(
        self, module: nn.Module, plans: Sequence[LayerPlan], batches: Sequence[Mapping[str, Array]]
    ) -> dict[str, Ranges]:
        """Return the ranges of the int8 layers."""
        with _quiet():
            observed = copy.deepcopy(module)
            placed = {}
            for item in plans:
                if item.precision == "int8":
                    placed[item.name] = _place(observed.get_submodule(item.name), item)
            for batch in batches:
                run(observed, batch)
            found = {}
            for item in plans:
                if item.precision == "int8":
                    amax = [_amax(quantizer) for quantizer in placed[item.name]]
                    count = input_count(item.type)
                    found[item.name] = ranges_of(item, amax[:count], amax[count] if item.weighted else None)
        return found


def _place(layer: nn.Module, planned: LayerPlan) -> list[TensorQuantizer]:
    """Let quantizers see a layer's inputs and its weight, and return them in that order."""
    rule = planned.int8_rule
    inputs = [
        _quantizer(rule.input, axis=None, where=planned.name, once=False) for _ in range(input_count(planned.type))
    ]

    def look(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        for quantizer, value in zip(inputs, arguments, strict=False):
            quantizer(value)

    layer.register_forward_pre_hook(look)
    if not planned.weighted:
        return inputs
    axis = channel_axis(planned.type) if rule.weight.per_channel else None
    weight = _quantizer(rule.weight, axis=axis, where=planned.name, once=True)
    parametrize.register_parametrization(layer, "weight", weight)
    return [*inputs, weight]


def _quantizer(spec: InputQuantizer | WeightQuantizer, *, axis: int | None, where: str, once: bool) -> TensorQuantizer:
    quantizer = TensorQuantizer(QuantDescriptor(num_bits=8, axis=axis), if_quant=False, if_calib=True)
    quantizer._calibrator = PluggedCalibrator(spec, axis=axis, where=where, once=once)
    return quantizer


def _amax(quantizer: TensorQuantizer) -> torch.Tensor | None:
    if quantizer._calibrator.compute_amax() is None:
        return None
    quantizer.load_calib_amax()
    amax: torch.Tensor = quantizer.amax
    return amax


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's log of every step off stderr."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
