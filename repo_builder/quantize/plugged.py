"""What both libraries' back ends share: our calibrator behind their interface, finders and roundings around theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from repo_builder.core.recipe import InputQuantizer, WeightQuantizer
from repo_builder.core.tensors import Array
from repo_builder.quantize.calibrators import Calibrator
from repo_builder.quantize.finders import calibrator


class PluggedCalibrator:
    """Our calibrator behind the interface that both libraries give theirs.

    Args:
        spec: How the range is found.
        channels: Number of ranges, on the first axis; 1 for a per-tensor range.
        where: The layer that errors name.
    """

    def __init__(self, spec: InputQuantizer | WeightQuantizer, *, channels: int, where: str) -> None:
        # ModelOpt reads them under these names
        self._num_bits, self._axis, self._unsigned = 8, None if channels == 1 else 0, False
        self._channels, self._spec, self._where = channels, spec, where
        self.reset()

    def collect(self, x: torch.Tensor) -> None:
        """Take a tensor."""
        self._seen, self._dims = True, x.dim()
        self._calibrator.observe(x.detach().float().cpu().numpy())

    def reset(self) -> None:
        """Forget what was collected."""
        self._calibrator = calibrator(self._spec, channels=self._channels, where=self._where)
        self._seen, self._dims = False, 1

    def compute_amax(self, *_: Any, **__: Any) -> torch.Tensor | None:  # noqa: ANN401 - the libraries' signature
        """Return the range, shaped to broadcast along the axis; None where nothing was collected."""
        if not self._seen:
            return None
        amax = torch.from_numpy(self._calibrator.amax())
        return amax.squeeze(0) if self._channels == 1 else amax.reshape(-1, *[1] * (self._dims - 1))


class QuantizerFinder:
    """A library's TensorQuantizer as a finder (``finders.Finder``).

    Args:
        quantizer: It collects what it is called with and takes no part in arithmetic.
        channels: Number of ranges.
    """

    def __init__(self, quantizer: Any, *, channels: int) -> None:  # noqa: ANN401 - either library's
        self._quantizer, self._channels = quantizer, channels

    def observe(self, values: Array) -> None:
        """Show the quantizer values."""
        with torch.no_grad():
            self._quantizer(torch.from_numpy(np.array(values, np.float32)))

    def amax(self) -> Array:
        """Return what the quantizer found, float32 (channels,)."""
        if self._quantizer._calibrator.compute_amax() is None:
            return Calibrator("max", channels=self._channels).amax()  # which says that nothing was seen
        self._quantizer.load_calib_amax()
        found: Array = self._quantizer.amax.detach().cpu().numpy().astype(np.float32).reshape(self._channels)
        return found


class QuantizerRounding:
    """A library's TensorQuantizer as a rounding (``finetune.rounding.Rounding``): it fake-quantizes in steps of 1.

    What is beyond the codes is clipped before it comes to the quantizer: libraries differ in whether a gradient passes
    there (ModelOpt lets it), and an unsigned quantizer takes no negative values.

    Args:
        quantizer: It fake-quantizes what it is called with.
        low: The lowest code.
        high: The highest.
    """

    def __init__(self, quantizer: Any, *, low: int, high: int) -> None:  # noqa: ANN401 - either library's
        self._quantizer, self._low, self._high = quantizer, low, high

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return whole steps."""
        if self._quantizer._amax.device != x.device:
            self._quantizer.to(x.device)
        found: torch.Tensor = self._quantizer(x.clamp(self._low, self._high))
        return found
