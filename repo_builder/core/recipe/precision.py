"""``[quantize]`` and ``[export]``: which layer gets which precision, and the ONNX that says so."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from repo_builder.core.bounds import Bound
from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe.bounds import EIGHT_BITS, Count, Percent, Text
from repo_builder.core.recipe.repair import RepairSpec

Precision = Literal["int4", "int8", "fp8", "fp16", "fp32"]
Exporter = Literal["auto", "torch.export", "torchscript"]
Keep = Literal["what pays", "all"]
CalibratorName = Literal["max", "percentile", "mse", "entropy", "best", "gptq"]
# of layers in fp8, whose codes keep small values whatever the range is
FP8_CALIBRATORS = ("max", "percentile", "mse")
INT4_CALIBRATORS = ("max", "mse", "gptq")  # of a block's few weights
Block = Literal[16, 32, 64, 128, 256]  # what ONNX Runtime's MatMulNBits takes
InputCalibratorName = Literal["max", "percentile", "mse", "entropy", "best", "dynamic"]


@dataclass(frozen=True, kw_only=True)
class InputQuantizer:
    """How a layer's input range is found: per tensor, symmetric.

    Attributes:
        calibrator: ``max``, ``percentile``, ``mse``, ``entropy``; ``best``: of these the one that leaves the network's
            outputs most, tensor by tensor; or ``dynamic``: found anew in every run, for linear layers on ONNX Runtime's
            CPU provider.
        percentile: Percent of absolute values that are kept; for ``percentile`` only.
    """

    calibrator: InputCalibratorName = "max"
    percentile: Percent | None = None

    def __post_init__(self) -> None:
        """Refuse a percentile that the calibrator lacks, or does not take."""
        _check_percentile(self.calibrator, self.percentile)


@dataclass(frozen=True, kw_only=True)
class WeightQuantizer:
    """How a layer's weight range is found: symmetric, per output channel or per tensor; for int4 a block at a time.

    Attributes:
        calibrator: ``max``, ``percentile``, ``mse``, ``entropy``, or ``best``: of these the one that leaves the
            network's outputs most, layer by layer; of int4 ``max``, ``mse``, or ``gptq``: codes that make up for each
            other's rounding on the calibration samples.
        percentile: Percent of absolute values that are kept; for ``percentile`` only.
        per_channel: Whether every output channel has a range of its own.
        block: int4 only: how many weights of an output have a range of their own; 32 where it is left out.
        symmetric: int4 only: whether that range is as wide to both sides of 0, or from the least weight to the largest,
            with a zero point, which is the default: as fast, and one to two decibels better.
    """

    calibrator: CalibratorName = "max"
    percentile: Percent | None = None
    per_channel: bool = True
    block: Block | None = None
    symmetric: bool | None = None

    def __post_init__(self) -> None:
        """Refuse a percentile that the calibrator lacks, or does not take."""
        _check_percentile(self.calibrator, self.percentile)

    def without_blocks(self) -> WeightQuantizer:
        """Return it for another precision than int4: without what int4 alone has."""
        return replace(
            self, block=None, symmetric=None, calibrator="max" if self.calibrator == "gptq" else self.calibrator
        )


def _check_percentile(calibrator: str, percentile: float | None) -> None:
    if calibrator == "percentile" and percentile is None:
        hint = 'write { calibrator = "percentile", percentile = 99.99 }'
        raise RecipeError("the percentile calibrator needs a percentile", where="percentile", hint=hint)
    if calibrator != "percentile" and percentile is not None:
        raise RecipeError(f"the {calibrator} calibrator takes no percentile", where="percentile", hint="remove it")


def _refuse_int4(rule: LayerRule) -> None:
    """Refuse what 4-bit weights in blocks cannot have."""
    weight = rule.weight
    if rule.input != InputQuantizer():
        message = "int4 is of weights alone: the layer's input stays in floating point"
        raise RecipeError(message, where="input", hint="remove it")
    if weight.calibrator not in INT4_CALIBRATORS:
        message = f"the {weight.calibrator} calibrator is not for the few weights of an int4 block"
        raise RecipeError(
            message, where="weight.calibrator", hint='use "max", which rounds to nearest, "mse" or "gptq"'
        )
    if not weight.per_channel:
        message = "int4 weights have a range for each block of an output's weights, never one for all outputs"
        raise RecipeError(message, where="weight.per_channel", hint="remove it")


def _refuse_fp8(rule: LayerRule) -> None:
    """Refuse calibrators that are of steps of one size where the codes' steps grow with the values."""
    for key, calibrator in (("input", rule.input.calibrator), ("weight", rule.weight.calibrator)):
        if calibrator not in FP8_CALIBRATORS:
            names = ", ".join(FP8_CALIBRATORS)
            message = f"the {calibrator} calibrator is for int8, whose steps are all of one size, not for fp8"
            raise RecipeError(message, where=f"{key}.calibrator", hint=f"fp8 takes {names}")


@dataclass(frozen=True, kw_only=True)
class LayerRule:
    """``[[quantize.layers]]``: a precision for the layers it selects; of several that match, the last wins.

    Attributes:
        type: Module type, as in ``Conv2d`` (fnmatch pattern); left out, any.
        name: Qualified module name (fnmatch pattern), as in ``feature_layers.*``; left out, any.
        precision: ``int8``, ``int4`` (weights of linear layers alone), ``fp8`` (E4M3), ``fp16`` or ``fp32``.
        input: Range of the layer's input; int8 and fp8 only.
        weight: Range of the layer's weight; int8, int4 and fp8.
        optional: Whether the rule may select nothing, which is an error else.
        num_bits: 8; anything else is refused with the reason.
    """

    type: Text | None = None
    name: Text | None = None
    precision: Precision
    input: InputQuantizer = field(default_factory=InputQuantizer)
    weight: WeightQuantizer = field(default_factory=WeightQuantizer)
    optional: bool = False
    num_bits: Annotated[int, EIGHT_BITS] = 8

    def __post_init__(self) -> None:
        """Refuse settings that the precision has no use for."""
        if self.precision == "int4":
            _refuse_int4(self)
        elif self.weight.calibrator == "gptq":
            message = f"gptq chooses codes of int4 weights, and the rule asks for {self.precision}"
            hint = 'take another; for int8, rounding = "adaptive" in [quantize.repair] does alike'
            raise RecipeError(message, where="weight.calibrator", hint=hint)
        if self.precision == "fp8":
            _refuse_fp8(self)
        for key in ("block", "symmetric"):
            if self.precision != "int4" and getattr(self.weight, key) is not None:
                message = f"it is of int4 weights, and the rule asks for {self.precision}"
                raise RecipeError(message, where=f"weight.{key}", hint="remove it")

    def of(self, precision: Precision) -> LayerRule:
        """Return the rule with another precision, without what only its own has a use for."""
        weight = self.weight.without_blocks() if precision != "int4" else self.weight
        return replace(self, precision=precision, weight=weight)

    @property
    def selector(self) -> str:
        """What the rule selects, as in ``type=Conv2d``."""
        chosen = [f"{key}={value}" for key, value in (("type", self.type), ("name", self.name)) if value is not None]
        return " ".join(chosen) or "every layer"

    def __str__(self) -> str:
        """Return the rule's selector and precision, as in ``type=Conv2d → int8``."""
        return f"{self.selector} → {self.precision}"


@dataclass(frozen=True, kw_only=True)
class QuantizeSpec:
    """``[quantize]``: the back end and the layer rules. Layers that no rule selects stay fp32.

    Attributes:
        backend: Who finds ranges: ``onnxruntime`` (this package's own calibrators), ``modelopt`` or
            ``pytorch-quantization``; all are shown the same tensors.
        batch_size: Samples a calibration step.
        keep: Which int8 and int4 layers stay so: those of ``what pays``, which is measured (against fp32 on ONNX
            Runtime's CPU, against fp16 in TensorRT, for which up to two more plans are built), or ``all``. A layer that
            a rule calls by its full name always stays.
        layers: The rules, from top to bottom.
        repair: What is done so that int8 loses less.
    """

    backend: Text = "onnxruntime"
    batch_size: Count = 64
    keep: Keep = "what pays"
    layers: tuple[LayerRule, ...] = ()
    repair: RepairSpec = field(default_factory=RepairSpec)

    def __post_init__(self) -> None:
        """Refuse repairs of what no rule asks for."""
        if self.repair.asked and not any(rule.precision == "int8" for rule in self.layers):
            hint = 'ask for int8 in [[quantize.layers]], as type = "*" and precision = "int8", or leave the table out'
            raise RecipeError("repairs what int8 loses, and no rule asks for int8", where="repair", hint=hint)


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """``[export]``: the ONNX that is written.

    Attributes:
        opset: Version of the default operator set; 17 is the newest that TensorRT 8 parses.
        exporter: Who writes a torch module: ``torch.export``; ``torchscript``, the older exporter, which records a run;
            ``auto``: a recorded run where it computes no sizes and froze no value, else torch.export, and where that
            fails what was recorded.
    """

    opset: Annotated[int, Bound(ge=13, le=23, must="is not in 13 to 23")] = 17
    exporter: Exporter = "auto"
