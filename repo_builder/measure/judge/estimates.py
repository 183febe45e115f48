"""95 % intervals of throughputs, percentiles and ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from repo_builder.measure.judge.statistics import Z95, percentile
from repo_builder.results.tuning import Estimate

# Student's t, two-sided 95 %, by degrees of freedom; beyond the table the next smaller one stands, which is wider
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 14: 2.145, 29: 2.045}


def mean(values: Sequence[float]) -> Estimate:
    """Return the mean with Student's interval; of a single value the interval is the value."""
    middle = sum(values) / len(values)
    if len(values) < 2:
        return Estimate(value=middle, low=middle, high=middle)
    reach = _t(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(value=middle, low=middle - reach, high=middle + reach)


def throughput(total: float, windows: Sequence[float]) -> Estimate:
    """Return a throughput over all windows with the interval that their own rates give it; it does not go below 0."""
    spread = mean(windows or [total])
    reach = spread.high - spread.value
    return Estimate(value=total, low=max(0.0, total - reach), high=total + reach)


def quantile(values: Sequence[float], percent: float) -> Estimate:
    """Return a nearest-rank percentile with its distribution-free interval.

    Order statistics at ranks n·p ± z·√(n·p·(1 - p)), as in Conover, "Practical Nonparametric Statistics" (1999), 3.2.
    Latencies that follow each other are not independent: the true interval is rather wider.

    Args:
        values: At least one.
        percent: In (0, 100).
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    count, share = len(ordered), percent / 100
    reach = Z95 * math.sqrt(count * share * (1 - share))
    low = max(1, math.floor(count * share - reach))
    high = min(count, math.ceil(count * share + reach) + 1)
    return Estimate(value=percentile(ordered, percent), low=float(ordered[low - 1]), high=float(ordered[high - 1]))


def ratio(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Return the mean ratio second/first of paired rounds: Student's interval of the logarithms, taken back."""
    logs = mean([math.log(other / one) for one, other in zip(first, second, strict=True)])
    return Estimate(value=math.exp(logs.value), low=math.exp(logs.low), high=math.exp(logs.high))


def _t(freedom: int) -> float:
    return _T95[max(item for item in _T95 if item <= freedom)]
