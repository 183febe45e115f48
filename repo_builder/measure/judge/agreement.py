"""How close the outputs of two forms of a model are: any shape, any type, in blocks that keep memory small."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from repo_builder.core.errors import MeasureError
from repo_builder.core.records import OutputRecord
from repo_builder.core.tensors import Array

MOST_DB = 200.0  # what a form without any noise is given, so that it is a number in JSON
_BLOCK = 1 << 20  # values compared at a time
_VARIES = 1e-4  # of the RMS: what varies less between samples is rounding, and tells nothing apart


def compare(
    reference: Array, other: Array, *, name: str = "", tolerance: float | None = None, least_db: float | None = None
) -> OutputRecord:
    """Compare the outputs of two forms of a model on the same samples.

    Args:
        reference: ``(n, ...)``, the form that the other derives from; numbers, truth values or strings.
        other: Of the same shape.
        name: The output's name.
        tolerance: Largest absolute difference at which a sample agrees.
        least_db: Lowest signal to noise at which a sample agrees, dB; without either, the class (argmax) of ``(n, c)``
            has to be the same.

    Raises:
        MeasureError: Shapes differ, or an output is not finite.
    """
    if reference.shape != other.shape or not reference.size:
        raise MeasureError(f"outputs of shapes {reference.shape} and {other.shape} cannot be compared")
    if reference.dtype.kind in "OSU" or other.dtype.kind in "OSU":
        return OutputRecord(name=name, agreement=float((reference.astype(str) == other.astype(str)).mean()))
    check_finite(reference)
    check_finite(other)
    one, two = reference.reshape(len(reference), -1), other.reshape(len(other), -1)
    sums = _Sums(one, two)
    if reference.dtype.kind != "f":
        equal = float((one == two).mean())
    elif tolerance is not None:
        equal = float((sums.largest <= tolerance).mean())
    elif least_db is not None:
        equal = float(np.mean([decibels(*pair) >= least_db for pair in zip(sums.signal, sums.noise, strict=True)]))
    else:
        equal = float((one.argmax(axis=1) == two.argmax(axis=1)).mean())
    numbers = reference.dtype.kind != "b"
    return OutputRecord(
        name=name,
        agreement=equal,
        max_abs_diff=float(sums.largest.max()),
        mean_abs_diff=sums.absolute / reference.size,
        sqnr_db=decibels(float(sums.signal.sum()), float(sums.noise.sum())) if numbers else None,
        cosine=sums.cosine if numbers else None,
        relative_error=sums.relative_error if numbers else None,
    )


def decibels(signal: float, noise: float) -> float:
    """Return 10·log10(signal / noise), limited to ±200 dB."""
    if noise == 0:
        return MOST_DB
    if signal == 0:
        return -MOST_DB
    return max(-MOST_DB, min(MOST_DB, 10 * math.log10(signal / noise)))


def check_finite(outputs: Array) -> None:
    """Refuse outputs that no number can be trusted of.

    Args:
        outputs: ``(n, ...)``.

    Raises:
        MeasureError: A value is NaN or infinite; names the first such sample.
    """
    if outputs.dtype.kind != "f":
        return
    bad = ~np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise MeasureError(
            f"the outputs of {int(bad.sum())} of {len(outputs)} samples are NaN or infinite, first of sample {first}",
            hint="look at that sample, and at fp16 layers whose values overflow",
        )


class _Sums:
    """What one pass over two forms finds, per sample in float64.

    Args:
        reference: ``(n, values)``.
        other: The same.
    """

    def __init__(self, reference: Array, other: Array) -> None:
        count = len(reference)
        self.signal, self.noise, self.largest = np.zeros(count), np.zeros(count), np.zeros(count)
        self._other, self._inner = np.zeros(count), np.zeros(count)
        self.absolute, self._single = 0.0, reference.shape[1] == 1
        self._mean = reference.mean(axis=0, dtype=np.float64)
        self._varies = 0.0
        for part in _blocks(reference):
            one, two = reference[part].astype(np.float64), other[part].astype(np.float64)
            difference = np.abs(one - two)
            self.largest[part] = difference.max(axis=1)
            self.absolute += float(difference.sum())
            self.signal[part], self.noise[part] = np.square(one).sum(axis=1), np.square(difference).sum(axis=1)
            self._other[part], self._inner[part] = np.square(two).sum(axis=1), (one * two).sum(axis=1)
            self._varies += float(np.square(one - self._mean).sum())

    @property
    def cosine(self) -> float:
        """The mean over samples; over all of them as one vector where a sample is one number."""
        sums = (self._inner, self.signal, self._other)
        inner, one, two = (np.array([item.sum()]) if self._single else item for item in sums)
        lengths = np.sqrt(one) * np.sqrt(two)
        alone = np.where(one == two, 1.0, 0.0)  # a vector of zeros has no direction: the same as another, or not
        return float(np.clip(np.where(lengths > 0, inner / np.where(lengths > 0, lengths, 1), alone), -1, 1).mean())

    @property
    def relative_error(self) -> float | None:
        """RMS of the difference over the RMS by which the reference varies between samples; see ``OutputRecord``."""
        signal, noise = float(self.signal.sum()), float(self.noise.sum())
        scale = self._varies if self._varies > _VARIES**2 * signal else signal
        if scale == 0:
            return 0.0 if noise == 0 else None
        return math.sqrt(noise / scale)


def _blocks(values: Array) -> Iterator[slice]:
    step = max(1, _BLOCK // values.shape[1])
    for start in range(0, len(values), step):
        yield slice(start, start + step)
