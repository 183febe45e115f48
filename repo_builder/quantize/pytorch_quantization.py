"""pytorch-quantization, ModelOpt's predecessor, as a back end: its TensorQuantizers are shown the tensors.

The calibrators are ours, in the place where a TensorQuantizer keeps its own: the library's mse needs a GPU and its
entropy takes minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from absl import logging
from pytorch_quantization.nn import TensorQuantizer
from pytorch_quantization.tensor_quant import QuantDescriptor

from repo_builder.core.recipe import InputQuantizer, WeightQuantizer
from repo_builder.core.tensors import Array
from repo_builder.quantize.finders import Finder
from repo_builder.quantize.finetune.rounding import code_limits
from repo_builder.quantize.plugged import PluggedCalibrator, QuantizerFinder, QuantizerRounding


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's log of every step off stderr."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


class _QuietFinder(QuantizerFinder):
    """Keeps the library's log of every step off stderr."""

    def amax(self) -> Array:
        """Return what the quantizer found."""
        with _quiet():
            return super().amax()


def finder(spec: InputQuantizer | WeightQuantizer, *, channels: int, where: str) -> Finder:
    """See ``finders.FinderMaker``."""
    axis = None if channels == 1 else 0
    with _quiet():
        quantizer = TensorQuantizer(QuantDescriptor(num_bits=8, axis=axis), if_quant=False, if_calib=True)
    quantizer._calibrator = PluggedCalibrator(spec, channels=channels, where=where)
    return _QuietFinder(quantizer, channels=channels)


def rounding(*, bits: int, unsigned: bool, narrow: bool) -> QuantizerRounding:
    """See ``finetune.rounding.RoundingMaker``."""
    low, high = code_limits(bits=bits, unsigned=unsigned, narrow=narrow)
    with _quiet():
        described = QuantDescriptor(num_bits=bits, unsigned=unsigned, narrow_range=narrow, amax=float(high))
        quantizer = TensorQuantizer(described)
    return QuantizerRounding(quantizer, low=low, high=high)
