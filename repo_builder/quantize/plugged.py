"""What both back ends share: the calibrator that plugs into them, how a batch is run, how their ranges are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from repo_builder.core.errors import QuantizeError, RepoBuilderError, first_line
from repo_builder.core.recipe import InputQuantizer, WeightQuantizer
from repo_builder.core.tensors import Array
from repo_builder.quantize import LayerPlan, Ranges
from repo_builder.quantize.calibrators import Calibrator


class PluggedCalibrator:
    """Our calibrator behind the interface that both libraries give theirs.

    Args:
        spec: How the range is found.
        axis: Axis of the channels; None for one range.
        where: The layer that errors name.
        once: Whether only the first tensor counts: a weight is shown again with every batch.
    """

    def __init__(self, spec: InputQuantizer | WeightQuantizer, *, axis: int | None, where: str, once: bool) -> None:
        self._num_bits, self._axis, self._unsigned = 8, axis, False  # ModelOpt reads them under these names
        self._spec, self._where, self._once = spec, where, once
        self._calibrator: Calibrator | None = None
        self._amax: torch.Tensor | None = None

    def collect(self, x: torch.Tensor) -> None:
        """Take a tensor."""
        if self._calibrator is not None and self._once:
            return
        values = x.detach().float().cpu()
        if self._axis is not None:
            values = values.movedim(self._axis, 0)
        if self._calibrator is None:
            channels = 1 if self._axis is None else len(values)
            name, percentile = self._spec.calibrator, self._spec.percentile
            self._calibrator = Calibrator(name, percentile, channels=channels, where=self._where)
            self._shape = [len(values) if place == self._axis else 1 for place in range(x.dim())]
        self._calibrator.observe(values.numpy())

    def reset(self) -> None:
        """Forget what was collected."""
        self._calibrator = self._amax = None

    def compute_amax(self, *_: Any, **__: Any) -> torch.Tensor | None:  # noqa: ANN401 - the libraries' signature
        """Return the range, shaped to broadcast along the axis; None where nothing was collected."""
        if self._calibrator is not None and self._amax is None:
            amax = torch.from_numpy(self._calibrator.amax())
            self._amax = amax.squeeze(0) if self._axis is None else amax.reshape(self._shape)
        return self._amax


def run(module: nn.Module, batch: Mapping[str, Array]) -> Any:  # noqa: ANN401 - whatever the module returns
    """Run a module on one batch; values are passed in the batch's order.

    Raises:
        QuantizeError: It does not run.
    """
    tensors = [torch.from_numpy(np.ascontiguousarray(value)) for value in batch.values()]
    try:
        return module(*tensors)
    except RepoBuilderError:
        raise
    except Exception as error:  # whatever a user's forward raises
        shapes = ", ".join(str(list(item.shape)) for item in tensors)
        raise QuantizeError(
            f"the network does not run on calibration data of shape {shapes}: {first_line(error)}",
            hint="check [model.inputs] and the data; the first dimension here is the batch",
        ) from error


def ranges_of(planned: LayerPlan, inputs: Sequence[torch.Tensor | None], weight: torch.Tensor | None) -> Ranges:
    """Read a layer's ranges from its quantizers' amax.

    Raises:
        QuantizeError: A quantizer saw nothing, so the layer was not run.
    """
    found = []
    for amax in (*inputs, *([weight] if planned.weighted else [])):
        if amax is None:
            raise QuantizeError(
                "the layer was not run on the calibration data",
                where=planned.name,
                hint="leave it out of the int8 rules: its module is never called, or calls go around it",
            )
        found.append(amax.detach().cpu().numpy().astype(np.float32).reshape([n for n in amax.shape if n > 1]))
    return Ranges(inputs=tuple(found[: len(inputs)]), weight=found[-1] if planned.weighted else None)
