"""From a trained network to one whose layers have the precisions of the recipe, calibrated on real data.

    rules.py        which layer gets which precision (pure)
    calibrators.py  which range an int8 scale covers (numpy)
    folding.py      BatchNorm into the layer before it
    layers.py       what is a layer; ``Add`` for residual sums that may be int8
    fake_quant.py   the int8 layer, exact to the bit with ONNX
    ptq.py          the order of the above; table.py the per-layer table
    modelopt.py, pytorch_quantization.py   back ends: place quantizers, run calibration (plugged.py: what they share)
    onnx_graph.py   the same for a model that arrives as ONNX (onnx_prepare, onnx_calibrate, onnx_insert)

Importing this package imports neither torch nor a back end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from repo_builder.core import loading
from repo_builder.core.recipe import QuantizeSpec
from repo_builder.core.records import LayerRecord
from repo_builder.core.tensors import Array
from repo_builder.quantize.rules import LayerPlan, plan

if TYPE_CHECKING:
    from torch import nn

__all__ = ["BACKENDS", "LayerPlan", "Quantized", "Quantizer", "Ranges", "fold", "plan", "quantize"]

# name → ("module:class", the extra that installs what it imports)
BACKENDS: dict[str, tuple[str, str]] = {
    "modelopt": ("repo_builder.quantize.modelopt:ModeloptQuantizer", "build"),
    "pytorch-quantization": (
        "repo_builder.quantize.pytorch_quantization:PytorchQuantizationQuantizer",
        "pytorch-quantization",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """What calibration found for one int8 layer.

    Attributes:
        inputs: float32 scalars, the largest absolute value kept of each input (two for Add).
        weight: float32 (channels,), or () for one range; None for a layer without a weight.
    """

    inputs: tuple[Array, ...]
    weight: Array | None


class Quantizer(Protocol):
    """A back end: places quantizers as planned, shows them the calibration data, and reports the ranges.

    The module is not changed, and neither is the library's global state.
    """

    def __call__(
        self, module: nn.Module, plans: Sequence[LayerPlan], batches: Sequence[Mapping[str, Array]]
    ) -> dict[str, Ranges]:
        """Return the ranges of the int8 layers among ``plans``, by layer name.

        Args:
            module: The network, BatchNorm folded, in eval mode.
            plans: What each layer is to become.
            batches: Calibration data; a batch's values are passed to ``module`` in order.

        Raises:
            QuantizeError: A layer was not run, or its range cannot be found.
        """


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A network with the precisions of its recipe.

    Attributes:
        module: Runs fp32 arithmetic on int8-rounded values where a layer is int8; ``export.torch_onnx`` takes it.
        layers: The per-layer table.
        fp16_layers: Layers that are to become fp16 in the exported graph; ``module`` runs them in fp32.
    """

    module: nn.Module
    layers: tuple[LayerRecord, ...]
    fp16_layers: frozenset[str]


def fold(module: nn.Module) -> nn.Module:
    """Return a copy of a network in eval mode, each BatchNorm folded into the layer that feeds it where that is exact.

    Raises:
        MissingDependency: torch is not installed.
    """
    return cast("nn.Module", loading.load("repo_builder.quantize.folding:fold", extra="build")(module))


def quantize(
    module: nn.Module,
    spec: QuantizeSpec,
    calibration: Mapping[str, Array],
    *,
    input_names: tuple[str, ...],
    seed: int,
) -> Quantized:
    """Fold, plan, calibrate and quantize a network; deterministic, and ``module`` is not changed.

    Args:
        module: The trained network.
        spec: Back end and layer rules.
        calibration: Samples by input name, batch first.
        input_names: The order in which ``module`` takes them.
        seed: Seed of torch's generator while calibration runs; the caller's generator is left as it was.

    Raises:
        RecipeError: A rule selects nothing, or the back end is unknown.
        QuantizeError: A layer cannot be quantized as asked.
        MissingDependency: The back end is not installed.
    """
    run = loading.load("repo_builder.quantize.ptq:quantize", extra="build")
    return cast("Quantized", run(module, spec, calibration, input_names=input_names, seed=seed))
