"""NVIDIA ModelOpt as a back end: it places quantizers and runs calibration; the calibrators are ours.

They plug in where ModelOpt takes a ``(class, arguments, keywords)`` triple for a quantizer's calibrator. Its own
histogram mse is not used (the arguments of its quantization function are in the wrong order), nor its entropy.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from repo_builder.core.errors import QuantizeError
from repo_builder.core.recipe import InputQuantizer, WeightQuantizer
from repo_builder.core.tensors import Array
from repo_builder.quantize import LayerPlan, Ranges
from repo_builder.quantize.layers import Add, channel_axis, input_count
from repo_builder.quantize.plugged import PluggedCalibrator, ranges_of, run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns of optional libraries that this project does not use
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.nn import QuantInputBase, QuantModuleRegistry, TensorQuantizer


class _QuantAdd(QuantInputBase):  # type: ignore[misc]
    """``Add`` with a quantizer for each of its inputs."""

    def _setup(self) -> None:
        super()._setup()
        self._register_temp_attribute("other_quantizer", TensorQuantizer(self.default_quant_desc_input))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the sum of the quantized inputs."""
        total: torch.Tensor = super().forward(x, self.other_quantizer(y))
        return total


if Add not in QuantModuleRegistry:
    mtq.register(Add, _QuantAdd)


class ModeloptQuantizer:
    """See ``repo_builder.quantize.Quantizer``."""

    def __call__(
        self, module: nn.Module, plans: Sequence[LayerPlan], batches: Sequence[Mapping[str, Array]]
    ) -> dict[str, Ranges]:
        """Return the ranges of the int8 layers."""
        int8 = [item for item in plans if item.precision == "int8"]
        for item in int8:
            layer = module.get_submodule(item.name)
            if layer not in QuantModuleRegistry:
                raise QuantizeError(
                    f"ModelOpt quantizes no {type(layer).__name__}: its forward is not that of {item.type}",
                    where=item.name,
                    hint='set quantize.backend = "pytorch-quantization", which takes any forward',
                )
        entries = [{"quantizer_name": "*", "enable": False}, *(entry for item in int8 for entry in _entries(item))]

        def show(quantized: nn.Module) -> None:
            for batch in batches:
                run(quantized, batch)

        # It reports on stdout, which belongs to results, and warns of libraries that are not used here.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantized = mtq.quantize(copy.deepcopy(module), {"quant_cfg": entries, "algorithm": "max"}, show)
        found = {}
        for item in int8:
            layer = quantized.get_submodule(item.name)
            inputs = [getattr(layer, name).amax for name in _quantizer_names(item)]
            found[item.name] = ranges_of(item, inputs, layer.weight_quantizer.amax if item.weighted else None)
        return found


def _quantizer_names(planned: LayerPlan) -> tuple[str, ...]:
    return ("input_quantizer", "other_quantizer")[: input_count(planned.type)]


def _entries(planned: LayerPlan) -> Iterator[dict[str, Any]]:
    """Return ModelOpt's configuration of one layer's quantizers."""
    rule = planned.int8_rule
    for name in _quantizer_names(planned):
        yield _entry(planned.name, name, rule.input, axis=None, once=False)
    if planned.weighted:
        axis = channel_axis(planned.type) if rule.weight.per_channel else None
        yield _entry(planned.name, "weight_quantizer", rule.weight, axis=axis, once=True)


def _entry(
    layer: str, name: str, spec: InputQuantizer | WeightQuantizer, *, axis: int | None, once: bool
) -> dict[str, Any]:
    plugged = (PluggedCalibrator, (spec,), {"axis": axis, "where": layer, "once": once})
    return {"quantizer_name": f"{layer}.{name}", "cfg": {"num_bits": 8, "axis": axis, "calibrator": plugged}}
