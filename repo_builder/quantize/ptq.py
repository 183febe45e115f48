"""Post-training quantization of a torch module: the order of its parts, and the per-layer table."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from repo_builder.core import loading
from repo_builder.core.errors import QuantizeError, RecipeError, did_you_mean
from repo_builder.core.recipe import QuantizeSpec
from repo_builder.core.tensors import Array
from repo_builder.quantize import BACKENDS, LayerPlan, Quantized, Quantizer, Ranges, plan
from repo_builder.quantize.fake_quant import quantize_layer, quantize_layers
from repo_builder.quantize.folding import fold
from repo_builder.quantize.layers import find_layers
from repo_builder.quantize.plugged import run
from repo_builder.quantize.table import check_inputs, decibels, record, split

Batch = Mapping[str, Array]


def quantize(
    module: nn.Module, spec: QuantizeSpec, calibration: Batch, *, input_names: tuple[str, ...], seed: int
) -> Quantized:
    """See ``repo_builder.quantize.quantize``."""
    batches = split(calibration, input_names, spec.batch_size)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        folded = fold(module)
        _check_folding(module, folded, batches[0])
        plans = plan(find_layers(folded), spec)
        _check_padding(folded, plans)
        ranges = _backend(spec.backend)(folded, plans, batches) if any(_int8(item) for item in plans) else {}
        check_inputs(ranges)
        quantized = copy.deepcopy(folded)
        quantize_layers(quantized, ranges)
        ratios = signal_to_noise(folded, ranges, batches)
    return Quantized(
        module=quantized,
        layers=tuple(record(item, ranges.get(item.name), ratios.get(item.name)) for item in plans),
        fp16_layers=frozenset(item.name for item in plans if item.precision == "fp16"),
    )


def signal_to_noise(module: nn.Module, ranges: Mapping[str, Ranges], batches: Sequence[Batch]) -> dict[str, float]:
    """Measure what int8 does to each layer on its own.

    A layer's signal is its output in fp32, its noise the difference that int8 input and weight make to that output
    for the same fp32 input: 10·log10(Σ signal² / Σ noise²) over all calibration samples, dB. Errors of the layers
    before it are left out, so the figures tell which layer is hard to quantize.

    Args:
        module: The unquantized network.
        ranges: Ranges of the int8 layers.
        batches: Calibration data.
    """
    powers = {name: [0.0, 0.0] for name in ranges}
    handles = []
    for name, found in ranges.items():
        layer = module.get_submodule(name)
        twin = copy.deepcopy(layer)
        quantize_layer(twin, found)
        handles.append(layer.register_forward_hook(_compare(twin, powers[name])))
    try:
        for batch in batches:
            run(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: decibels(signal, noise) for name, (signal, noise) in powers.items()}


def _compare(twin: nn.Module, powers: list[float]) -> Callable[[nn.Module, tuple[Any, ...], torch.Tensor], None]:
    def hook(_: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> None:
        noise = twin(*arguments) - output
        powers[0] += float(output.double().square().sum())
        powers[1] += float(noise.double().square().sum())

    return hook


def _backend(name: str) -> Quantizer:
    if name not in BACKENDS:
        raise RecipeError(
            f"'{name}' is no quantization back end", where="quantize.backend", hint=did_you_mean(name, BACKENDS)
        )
    target, extra = BACKENDS[name]
    quantizer: Quantizer = loading.load(target, extra=extra)()
    return quantizer


def _int8(planned: LayerPlan) -> bool:
    return planned.precision == "int8"


def _check_padding(module: nn.Module, plans: Sequence[LayerPlan]) -> None:
    """Refuse int8 where padding is computed between the quantizer and the convolution: no target fuses that."""
    for item in filter(_int8, plans):
        mode = getattr(module.get_submodule(item.name), "padding_mode", "zeros")
        if mode != "zeros":
            raise QuantizeError(
                f"it pads in '{mode}' mode, which keeps its input's quantizer away from it",
                where=item.name,
                hint="leave the layer in fp32 or fp16, or pad with zeros",
            )


def _check_folding(module: nn.Module, folded: nn.Module, batch: Batch) -> None:
    """Compare the folded network with the original: what folding assumed of an untraceable network may be wrong."""
    original = copy.deepcopy(module).eval()
    before, after = (_flat(run(item, batch)) for item in (original, folded))
    for one, other in zip(before, after, strict=True):
        tolerance = 1e-3 * max(1.0, float(one.nan_to_num().abs().max()))
        if not torch.allclose(one, other, rtol=1e-3, atol=tolerance, equal_nan=True):
            raise QuantizeError(
                f"folding BatchNorm changed the output by up to {float((one - other).abs().max()):.3g}",
                hint="make the network traceable by torch.fx, so that folding can see where each output goes",
            )


def _flat(outputs: Any) -> Iterator[torch.Tensor]:  # noqa: ANN401 - whatever the module returns
    if isinstance(outputs, torch.Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        yield from _flat(list(outputs.values()))
    else:
        for item in outputs:
            yield from _flat(item)
