"""The knee: the highest throughput whose latency is still under a limit."""

from __future__ import annotations

from collections.abc import Callable

from repo_builder.results import LevelResult

_GROWTH = 1.02


def knee(measure: Callable[[int], LevelResult], *, most_p99_ms: float, most: int = 1024) -> int | None:
    """Find the concurrency with the highest throughput whose p99 is at most ``most_p99_ms``.

    Concurrency doubles until p99 is over the limit, or throughput has stopped growing for two steps; between the last
    that held and the first that did not the search then halves the gap. Latency grows with concurrency once the server
    is busy, so that what lies beyond the first failure needs no look.

    Args:
        measure: Measures one concurrency.
        most_p99_ms: The limit.
        most: Largest concurrency to try.

    Returns:
        The concurrency; None where even one request at a time is too slow.
    """
    held: dict[int, float] = {}
    low, high, flat = 0, 0, 0
    current = 1
    while current <= most and flat < 2:
        result = measure(current)
        if not within(result, most_p99_ms):
            high = current
            break
        best = max(held.values(), default=0.0)
        flat = 0 if result.infer_per_s > best * _GROWTH else flat + 1
        held[current] = result.infer_per_s
        low, current = current, current * 2
    while high and high - low > max(1, low // 8):
        middle = (low + high) // 2
        result = measure(middle)
        if within(result, most_p99_ms):
            held[middle] = result.infer_per_s
            low = middle
        else:
            high = middle
    return max(held, key=lambda line: held[line], default=None)


def within(result: LevelResult, most_p99_ms: float) -> bool:
    """Whether a level's p99 is under the limit and nothing failed in it."""
    return result.latency is not None and result.whole and result.latency.p99_us <= most_p99_ms * 1000
