"""pytorch-quantization, ModelOpt's predecessor, as a back end: its TensorQuantizers are shown the tensors.

The calibrators are ours, in the place where a TensorQuantizer keeps its own: the library's mse needs a GPU and its
entropy takes minutes.
"""

from __future__ import annotations

from absl import logging
from pytorch_quantization.nn import TensorQuantizer
from pytorch_quantization.tensor_quant import QuantDescriptor

from repo_builder.core.recipe import InputQuantizer, WeightQuantizer
from repo_builder.core.tensors import Array
from repo_builder.quantize.finders import Finder
from repo_builder.quantize.plugged import PluggedCalibrator, QuantizerFinder


class _QuietFinder(QuantizerFinder):
    """Keeps the library's log of every step off stderr."""

    def amax(self) -> Array:
        """Return what the quantizer found."""
        before = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)
        try:
            return super().amax()
        finally:
            logging.set_verbosity(before)


def finder(spec: InputQuantizer | WeightQuantizer, *, channels: int, where: str) -> Finder:
    """See ``finders.FinderMaker``."""
    axis = None if channels == 1 else 0
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        quantizer = TensorQuantizer(QuantDescriptor(num_bits=8, axis=axis), if_quant=False, if_calib=True)
    finally:
        logging.set_verbosity(before)
    quantizer._calibrator = PluggedCalibrator(spec, channels=channels, where=where)
    return _QuietFinder(quantizer, channels=channels)
