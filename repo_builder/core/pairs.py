"""What two series of times, taken in turns, say of how many times as fast one is: a median, and how sure it is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from repo_builder.core.details import SpeedRecord

_Z95 = 1.96


def gain(rows: Sequence[SpeedRecord], of: Callable[[SpeedRecord], float] = lambda row: row.speedup) -> float:
    """Return the geometric mean over batch sizes of how many times as fast a choice is."""
    return statistics.geometric_mean([of(row) for row in rows])


def paired(batch_size: int, reference_s: Sequence[float], candidate_s: Sequence[float]) -> SpeedRecord:
    """Return the row of one batch size.

    The interval is that of the median of the turns' ratios by order statistics (ranks n/2 ± 1.96·√n/2), so that a turn
    that something else disturbed moves it by one rank at most.

    Args:
        batch_size: The batch size.
        reference_s: Seconds of the reference, one a turn.
        candidate_s: Seconds of the other in the same turns.
    """
    slow, fast = (statistics.median(taken) * 1e6 for taken in (reference_s, candidate_s))
    ratios = sorted(one / other for one, other in zip(reference_s, candidate_s, strict=True))
    reach = _Z95 * math.sqrt(len(ratios)) / 2
    first = max(0, math.floor(len(ratios) / 2 - reach))
    low, high = ratios[first], ratios[len(ratios) - 1 - first]
    speedup = slow / fast  # the ratio of medians may lie outside of what the turns' ratios span
    return SpeedRecord(
        batch_size=batch_size, reference_us=slow, candidate_us=fast, low=min(low, speedup), high=max(high, speedup)
    )
