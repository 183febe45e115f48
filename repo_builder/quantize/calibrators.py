"""Range finders: which absolute value a scale maps to the largest code. numpy only, one pass, deterministic.

``max`` keeps the largest absolute value. The others search a histogram of absolute values, whose memory does not
depend on the number of samples. A histogram's range is always a power of two and grows by merging neighbouring bins,
which is exact, so its counts depend on the values alone: not on their order and not on how they were batched.

A percentile that outliers push into the first bins of their wide range is read from a second histogram, whose bins grow
with the values.

Zero is exact at every scale. Zeros are counted apart: only the percentile, a statement about all values, sees them.
(In the histogram the many zeros after a ReLU would let entropy clip nearly everything else.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import numpy as np

from repo_builder.core.errors import QuantizeError
from repo_builder.core.precisions import PRECISIONS
from repo_builder.core.tensors import Array
from repo_builder.quantize import e4m3

BINS = 2048
_COARSE = 128  # below this edge a linear bin is more than 1/128 of the percentile: outliers have stretched the range
# Bits of a float32's pattern that a fine bin ignores: 128 bins an octave for a tensor, 8 where there are many channels.
_FINE_BITS, _MANY_BITS = 16, 20
_LEVELS = 128  # magnitudes 0..127 that symmetric int8 tells apart
LARGEST = 127
_LOWEST_EXPONENT = -149  # of a channel that saw zeros alone: below that of the smallest subnormal, 2**-149
_FLOAT32_EXPONENT = -116  # from here on BINS / 2**exponent is a float32
_TIE = 1e-9  # losses this close (relative for mse, absolute for entropy) are ties; the widest range wins
MIN_AMAX = 2.0**-30  # an all-zero weight channel still needs a scale above 0


class Histogram:
    """Counts of absolute values for each channel, on a range that grows.

    Attributes:
        counts: int64 (channels, BINS); bin j holds values in [j, j + 1) × 2**exponent / BINS, zeros left out.
        exponents: int64 (channels,); the range is 2**exponent, the smallest power of two above every value seen.
        zeros: int64 (channels,); exact zeros.

    Args:
        channels: Number of histograms, 1 for a per-tensor range.
    """

    def __init__(self, channels: int = 1) -> None:
        self.counts = np.zeros((channels, BINS), np.int64)
        self.exponents = np.full(channels, _LOWEST_EXPONENT, np.int64)
        self.zeros = np.zeros(channels, np.int64)

    @property
    def widths(self) -> Array:
        """The bins' widths, float64 (channels,)."""
        return np.ldexp(1.0 / BINS, self.exponents)

    def add(self, magnitudes: Array) -> None:
        """Count absolute values, float32 (channels, n)."""
        channels = len(self.counts)
        largest = magnitudes.max(axis=1)
        self._grow(np.where(largest > 0, np.frexp(largest)[1], _LOWEST_EXPONENT))
        seen = np.where(self.exponents > _LOWEST_EXPONENT, self.exponents, 0)
        # powers of two, so the product is exact; ranges near the smallest float32 need a wider one
        kind = np.float32 if seen.min() >= _FLOAT32_EXPONENT else np.float64
        places = (magnitudes * np.ldexp(kind(BINS), -seen)[:, None]).astype(np.int32)
        places += (np.arange(channels, dtype=np.int32) * BINS)[:, None]
        found = np.bincount(places.ravel(), minlength=channels * BINS).reshape(channels, BINS)
        zeros = magnitudes.shape[1] - np.count_nonzero(magnitudes, axis=1)
        found[:, 0] -= zeros
        self.zeros += zeros
        self.counts += found

    def _grow(self, exponents: Array) -> None:
        """Double ranges, as often as needed, by merging bins."""
        for channel in np.flatnonzero(exponents > self.exponents):
            step = min(int(exponents[channel] - self.exponents[channel]), BINS.bit_length() - 1)
            merged = self.counts[channel].reshape(-1, 1 << step).sum(axis=1)
            self.counts[channel] = 0
            self.counts[channel, : len(merged)] = merged
            self.exponents[channel] = exponents[channel]


class Calibrator:
    """Finds one range for each channel from values that come in batches.

    Args:
        name: ``max``, ``percentile``, ``mse`` or ``entropy``.
        percentile: Percent of the absolute values that the range keeps, in (0, 100]; for ``percentile`` only.
        channels: Number of ranges, 1 for a per-tensor range.
        where: The layer that errors name.
        precision: What the codes are of, ``int8`` or ``fp8``: ``mse`` is the error that they make.
    """

    def __init__(
        self,
        name: str,
        percentile: float | None = None,
        *,
        channels: int = 1,
        where: str | None = None,
        precision: Literal["int8", "fp8"] = "int8",
    ) -> None:
        self.name = name
        self.precision = precision
        self.percentile = percentile
        self.where = where
        self._largest = np.zeros(channels, np.float32)
        self._histogram = None if name == "max" else Histogram(channels)
        self._bits = _FINE_BITS if channels == 1 else _MANY_BITS
        self._fine = np.zeros((channels, 1 << (31 - self._bits)), np.int64) if name == "percentile" else None
        self._seen = False

    def observe(self, values: Array) -> None:
        """Take values, float (channels, n); for one channel any shape will do.

        Raises:
            QuantizeError: A value is NaN or infinite.
        """
        rows = np.abs(np.asarray(values, np.float32)).reshape(len(self._largest), -1)
        if rows.size == 0:
            return
        largest = rows.max(axis=1)
        if not np.isfinite(largest).all():
            raise QuantizeError("the values to calibrate on hold NaN or infinity", where=self.where)
        self._seen = True
        self._largest = np.maximum(self._largest, largest)
        if self._histogram is not None:
            self._histogram.add(rows)
        if self._fine is not None:
            self._fine += _fine_counts(rows, self._bits)

    def amax(self) -> Array:
        """Return the ranges, float32 (channels,); 0 where a channel saw nothing but zeros.

        Raises:
            QuantizeError: There were no values, or a percentile of them is 0.
        """
        if not self._seen:
            raise QuantizeError("no value reached the calibrator", where=self.where)
        histogram = self._histogram
        if histogram is None:
            return self._largest
        if self.name == "percentile":
            if self.percentile is None:
                raise ValueError("the percentile calibrator needs a percentile")
            edges = percentile_edges(histogram, self.percentile)
        else:
            if (self.name, self.precision) not in _SEARCHES:
                raise ValueError(f"there is no {self.name} calibrator of {self.precision}")
            edges = _SEARCHES[self.name, self.precision](histogram.counts)
        found = np.minimum(self._refined(edges, edges * histogram.widths), self._largest).astype(np.float32)
        if (found[self._largest > 0] == 0).any():
            raise QuantizeError(
                f"at percentile {self.percentile} the range is 0",
                where=self.where,
                hint="most values are 0; take a larger percentile",
            )
        return found

    def _refined(self, edges: Array, values: Array) -> Array:
        """Replace percentiles that fall into the first bins by those of a histogram with bins of equal ratio."""
        if self._fine is None or self.percentile is None:
            return values
        values = np.array(values, np.float64)
        for channel in np.flatnonzero((edges > 0) & (edges < _COARSE)):
            kept = np.cumsum(self._fine[channel])
            place = int(np.argmax(kept >= self.percentile / 100 * kept[-1] * (1 - 1e-12)))
            above = np.array([(place + 1) << self._bits], np.uint32).view(np.float32)[0]
            values[channel] = min(values[channel], float(above))
        return values


def _fine_counts(magnitudes: Array, ignored_bits: int) -> Array:
    """Count absolute values, float32 (channels, n), by the upper bits of their patterns, which are in their order."""
    places = np.ascontiguousarray(magnitudes, np.float32).view(np.uint32) >> np.uint32(ignored_bits)
    size = 1 << (31 - ignored_bits)
    return np.stack([np.bincount(row, minlength=size) for row in places.astype(np.int32)])


def percentile_edges(histogram: Histogram, percentile: float) -> Array:
    """Return for each channel the first bin edge at or above ``percentile`` percent of all values, zeros included.

    The edge keeps at least that share of the values and lies at most one bin above the exact percentile.

    Returns:
        Edges in bins, int64 (channels,); 0 where that many values are zeros.
    """
    kept = histogram.zeros[:, None] + np.concatenate(
        [np.zeros((len(histogram.zeros), 1), np.int64), np.cumsum(histogram.counts, axis=1)], axis=1
    )
    wanted = percentile / 100 * kept[:, -1:] * (1 - 1e-12)  # not above a share that is whole, whatever its rounding
    edges: Array = np.argmax(kept >= wanted, axis=1)
    return edges


def mse_edges(counts: Array, precision: Literal["int8", "fp8"] = "int8") -> Array:
    """Return for each channel the range with the least mean squared error of symmetric codes.

    Every bin edge from 128 to the last bin in use is tried; values stand at the centres of their bins. Errors of all
    ranges for all channels are one matrix product.

    Args:
        counts: int64 (channels, BINS).
        precision: What the codes are of.

    Returns:
        Edges in bins, int64 (channels,); 0 for an empty channel.
    """
    losses = counts.astype(np.float64) @ _squared_errors(precision)
    last = _last_edges(counts)
    losses[_candidates()[None, :] > last[:, None]] = np.inf
    return np.where(last > 0, _widest_best(losses, losses.min(axis=1) * (1 + _TIE)), 0)


def entropy_edges(counts: Array) -> Array:
    """Return for each channel the range with the least Kullback-Leibler divergence.

    The search is that of S. Migacz, "8-bit inference with TensorRT" (GTC 2017): for every number of bins i from 128,
    P is the first i bins with everything above added to the last of them; Q is the first i bins in 128 levels, each
    level's count spread evenly over those of its bins that are not empty; the i with the least KL(P‖Q) wins. Bin j
    belongs to level ⌊128·j / i⌋. Where Q is empty and P is not (clipped values, and an empty last bin) the divergence
    is infinite. Between 1024 and 2048 bins are in use here, 2048 in the publication. With cumulative sums a candidate
    costs 128 steps, whatever its number of bins.

    Args:
        counts: int64 (channels, BINS).

    Returns:
        Edges in bins, int64 (channels,); 0 for an empty channel.
    """
    return np.array([_entropy_edge(row.astype(np.float64)) for row in counts], np.int64)


def _entropy_edge(row: Array) -> int:
    last = int(_last_edges(row[None])[0])
    if last == 0:
        return 0
    edges = np.flatnonzero(row[_LEVELS - 1 :]) + _LEVELS  # an empty last bin is finite only where nothing is clipped
    edges = edges if len(edges) and edges[-1] == last else np.append(edges, last)
    total = row.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.where(row > 0, row * np.log(row), 0.0)
    below, used, entropy = (_cumulated(values) for values in (row, row > 0, own))
    places = _level_edges()[edges - _LEVELS]
    sums = np.diff(below[places], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(sums > 0, np.log(sums / np.diff(used[places], axis=1)), 0.0)
        clipped, ending = total - below[edges], row[edges - 1] + total - below[edges]
        p_log_p = (entropy[edges - 1] + np.where(ending > 0, ending * np.log(ending), 0.0)) / total - np.log(total)
        p_log_q = ((sums * logs).sum(axis=1) + clipped * logs[:, -1]) / total - np.log(below[edges])
    divergence = np.where((row[edges - 1] == 0) & (clipped > 0), np.inf, p_log_p - p_log_q)
    return int(edges[np.flatnonzero(divergence <= divergence.min() + _TIE)[-1]])


def _cumulated(values: Array) -> Array:
    """Return sums of the first 0, 1, ... values, float64 (n + 1,)."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _last_edges(counts: Array) -> Array:
    """Return the edge above the last bin in use, at least 128; 0 for an empty channel."""
    used = counts > 0
    last = BINS - np.argmax(used[:, ::-1], axis=1)
    return np.where(used.any(axis=1), np.maximum(last, _LEVELS), 0)


def _widest_best(losses: Array, bounds: Array) -> Array:
    """Return the last candidate of each row that is within the row's bound."""
    within = losses <= bounds[:, None]
    best: Array = _candidates()[losses.shape[1] - 1 - np.argmax(within[:, ::-1], axis=1)]
    return best


@functools.cache
def _candidates() -> Array:
    return np.arange(_LEVELS, BINS + 1)


@functools.cache
def _squared_errors(precision: str) -> Array:
    """Return the squared error of each bin's centre under each candidate, in bins², float64 (BINS, candidates)."""
    centres = (np.arange(BINS) + 0.5)[:, None]
    scales = _candidates()[None, :] / PRECISIONS[precision].largest
    steps = centres / scales
    found = e4m3.rounded(steps) if precision == "fp8" else np.minimum(np.rint(steps), LARGEST)
    errors: Array = np.square(found * scales - centres)
    return errors


@functools.cache
def _level_edges() -> Array:
    """Return the first bin of each of the 128 levels, and the end, for each candidate, int64 (candidates, 129)."""
    edges: Array = -(-np.arange(_LEVELS + 1)[None, :] * _candidates()[:, None] // _LEVELS)
    return edges


# (calibrator, what the codes are of) → the range in bins. Entropy compares levels of one size, which fp8 has not.
_SEARCHES: dict[tuple[str, str], Callable[[Array], Array]] = {
    ("mse", "int8"): mse_edges,
    ("mse", "fp8"): functools.partial(mse_edges, precision="fp8"),
    ("entropy", "int8"): entropy_edges,
}
