"""What a network's outputs keep of their signal under a placement: what choices and repairs are judged by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from repo_builder.core.errors import QuantizeError
from repo_builder.core.tensors import Array
from repo_builder.quantize.noise import MAX_SQNR_DB, decibels
from repo_builder.quantize.observe import (
    BUDGET_BYTES,
    batches,
    check_samples,
    fixed_batch,
    open_session,
    run,
    tensor_bytes,
)

Samples = Mapping[str, Array]
_EVERY = 4  # one sample of so many judges, the others are what is fitted to
_MOST = 64  # samples that fit, and so many that judge


def parts(model: onnx.ModelProto, samples: Samples) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the samples that are fitted to, and those that judge: every fourth; of each at most 64.

    A model with a fixed batch takes whole batches of either kind.

    Raises:
        QuantizeError: There are too few samples for both.
    """
    given = check_samples(model, samples)
    size = fixed_batch(model, given) or 1
    blocks = min(len(item) for item in given.values()) // size
    if blocks < 2:
        raise QuantizeError(
            f"there are {blocks * size} calibration samples: some are fitted to, and others judge",
            hint=f"set data.calibration to at least {2 * size}, better to {64 * size}",
        )
    judges = list(range(_EVERY - 1, blocks, _EVERY)) or [blocks - 1]
    fits = [block for block in range(blocks) if block not in judges]
    most = max(1, _MOST // size)

    def cut(chosen: Sequence[int]) -> dict[str, Array]:
        rows = np.concatenate([np.arange(block * size, (block + 1) * size) for block in chosen[:most]])
        return {name: np.asarray(value)[rows] for name, value in given.items()}

    return cut(fits), cut(judges)


class Judge:
    """Compares the outputs of other forms with those of a model.

    Args:
        model: The model; its outputs are computed once.
        samples: Samples by input name, batch first; fewer are taken where their outputs would not fit into memory.
        batch_size: Samples of a run.
    """

    def __init__(self, model: onnx.ModelProto, samples: Samples, *, batch_size: int) -> None:
        self.outputs = [item.name for item in model.graph.output]
        smallest = fixed_batch(model, samples) or 1
        size = sum(tensor_bytes(model, self.outputs, samples).values()) or 1
        fits = max(smallest, BUDGET_BYTES // size * smallest)
        self.samples = {name: value[:fits] for name, value in samples.items()}
        self.batch_size = batch_size
        self.looks = 0  # how often a form was looked at
        self._model = model
        self._exact = list(self._run(model, optimize=True))

    def __len__(self) -> int:
        """Return the number of samples that are compared."""
        return len(next(iter(self.samples.values())))

    def keeps(self, form: onnx.ModelProto) -> float:
        """Return the lowest signal to noise of an output, dB, over all samples, optimizations off.

        Raises:
            QuantizeError: The form does not run.
        """
        self.looks += 1
        powers = {name: np.zeros(2) for name in self.outputs}
        for exact, found in zip(self._exact, self._run(form, optimize=False), strict=True):
            for name, signal in exact.items():
                if signal.dtype.kind not in "fiub" or signal.shape != found[name].shape:
                    continue
                wide = signal.astype(np.float64)
                with np.errstate(invalid="ignore", over="ignore"):
                    noise = np.square(found[name].astype(np.float64) - wide).sum()
                powers[name] += np.square(wide).sum(), noise if np.isfinite(noise) else np.inf
        told = [decibels(*map(float, item)) for item in powers.values() if item.any()]
        return min(told, default=MAX_SQNR_DB)

    def _run(self, model: onnx.ModelProto, *, optimize: bool) -> Iterator[dict[str, Array]]:
        session = open_session(model, [], optimize=optimize)
        for batch in batches(self._model, self.samples, self.batch_size):
            yield run(session, self.outputs, batch)
