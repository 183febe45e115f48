"""Statistics of latencies and proportions: pure functions of numpy arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from repo_builder.core.tensors import Array
from repo_builder.results import LatencySummary

Z95 = 1.959963984540054
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


def percentile(ordered: Array, percent: float) -> float:
    """Return the nearest-rank percentile: the smallest value that at least ``percent`` % of all do not exceed.

    Args:
        ordered: Values in ascending order, ``(n,)`` with n ≥ 1.
        percent: In [0, 100].
    """
    # The product is rounded before ceil so that 99.9 % of 1000 is rank 999 and not 1000.
    rank = math.ceil(round(percent / 100 * len(ordered), 9))
    return float(ordered[min(len(ordered), max(1, rank)) - 1])


def summarise(latencies_ns: Array) -> LatencySummary | None:
    """Summarise latencies, ``(n,)`` in nanoseconds; None where there are none."""
    if not len(latencies_ns):
        return None
    ordered = np.sort(np.asarray(latencies_ns, dtype=np.float64)) / 1000
    p50, p90, p95, p99, p999 = (percentile(ordered, item) for item in PERCENTILES)
    return LatencySummary(
        samples=len(ordered),
        mean_us=float(ordered.mean()),
        std_us=float(ordered.std()),
        p50_us=p50,
        p90_us=p90,
        p95_us=p95,
        p99_us=p99,
        p999_us=p999,
        max_us=float(ordered[-1]),
    )


def wilson(successes: int, samples: int, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson 1927), 95 % by default.

    Args:
        successes: Number of successes, at most ``samples``.
        samples: Number of trials, at least 1.
        z: Quantile of the normal distribution.
    """
    share = successes / samples
    scale = 1 + z * z / samples
    middle = (share + z * z / (2 * samples)) / scale
    reach = z / scale * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    return max(0.0, min(share, middle - reach)), min(1.0, max(share, middle + reach))


def spread(values: Sequence[float]) -> float:
    """Return how far the farthest value is from the mean, as a fraction of the mean; infinite for a mean of 0."""
    mean = sum(values) / len(values)
    return max(abs(value - mean) for value in values) / mean if mean > 0 else math.inf
