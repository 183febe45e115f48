"""NVIDIA ModelOpt as a back end: its TensorQuantizers are shown the tensors; the calibrators in them are ours.

Its own histogram mse is not used (the arguments of its quantization function are in the wrong order), nor its entropy.
"""

from __future__ import annotations

import warnings

from repo_builder.core.recipe import InputQuantizer, WeightQuantizer
from repo_builder.quantize.finders import Finder
from repo_builder.quantize.finetune.rounding import code_limits
from repo_builder.quantize.plugged import PluggedCalibrator, QuantizerFinder, QuantizerRounding

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns of optional libraries that this project does not use
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
    from modelopt.torch.quantization.nn import TensorQuantizer


def finder(spec: InputQuantizer | WeightQuantizer, *, channels: int, where: str) -> Finder:
    """See ``finders.FinderMaker``."""
    plugged = (PluggedCalibrator, (spec,), {"channels": channels, "where": where})
    axis = None if channels == 1 else 0
    quantizer = TensorQuantizer(QuantizerAttributeConfig(num_bits=8, axis=axis, calibrator=plugged))
    quantizer.disable_quant()
    quantizer.enable_calib()
    return QuantizerFinder(quantizer, channels=channels)


def rounding(*, bits: int, unsigned: bool, narrow: bool) -> QuantizerRounding:
    """See ``finetune.rounding.RoundingMaker``."""
    low, high = code_limits(bits=bits, unsigned=unsigned, narrow=narrow)
    quantizer = TensorQuantizer(QuantizerAttributeConfig(num_bits=bits, unsigned=unsigned, narrow_range=narrow))
    quantizer.amax = float(high)
    return QuantizerRounding(quantizer, low=low, high=high)
