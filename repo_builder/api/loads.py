"""Loads as Python's values, and how long each is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from repo_builder.core.errors import MeasureError
from repo_builder.measure.load import grid
from repo_builder.measure.load.course import MERGED, Pace
from repo_builder.results import Level, SharedMemory


def levels(
    concurrency: int | Sequence[int] | None,
    batch_size: int | Sequence[int] | None,
    request_rate: float | Sequence[float] | None,
    poisson: bool,
    max_p99_ms: float | None,
    shapes: dict[str, tuple[int, ...]] | None,
    shared_memory: SharedMemory,
    trace: str | Path | None = None,
    max_in_flight: int = 128,
) -> tuple[Level, ...]:
    """Return the levels asked for; none where all is left to the recipe."""
    loads = {"concurrency": concurrency, "request_rate": request_rate, "trace": trace, "max_p99_ms": max_p99_ms}
    given = [name for name, value in loads.items() if value is not None]
    if len(given) > 1:
        raise MeasureError(f"{' and '.join(given)} are different loads", where="perf", hint="give one of them")
    if poisson and request_rate is None:
        raise MeasureError("arrivals at random need a request_rate", where="poisson", hint="give request_rate")
    if not given and batch_size is None and not shapes and shared_memory == "none":
        return ()
    lines, sizes = _several(concurrency, "concurrency", 1), _several(batch_size, "batch_size", 1)
    return grid.levels(
        concurrency=tuple(map(int, lines)),
        rates=() if request_rate is None else _several(request_rate, "request_rate", 1, whole=False),
        poisson=poisson,
        trace=str(trace or ""),
        batch_sizes=tuple(map(int, sizes)),
        shape_sets=[shapes] if shapes else [],
        shared_memory=shared_memory,
        most_in_flight=int(_several(max_in_flight, "max_in_flight", 1)[0]),
    )


def _several(
    value: float | Sequence[float] | None, name: str, default: int, *, whole: bool = True
) -> tuple[float, ...]:
    """Return one number or several as several.

    Raises:
        MeasureError: There is none, or one is not above 0 or not whole.
    """
    found = tuple(value) if isinstance(value, Sequence) else (default if value is None else value,)
    if not found or not all(0 < item < float("inf") and (not whole or item == int(item)) for item in found):
        said = "a whole number" if whole else "a number"
        raise MeasureError(f"{value!r} is not {said} above 0, or several", where=name, hint="as in 4 or (1, 4, 16)")
    return found


def pace(
    duration_s: float | None,
    requests: int | None,
    *,
    window_ms: float = 1000.0,
    window_requests: int = 50,
    max_windows: int = 10,
    stability_percent: float = 10.0,
    stability_percentile: float = 50,
    raw: bool = False,
) -> Pace:
    """Return how long a level is measured: until its windows agree, unless a time or a number is given."""
    if duration_s is not None and requests is not None:
        raise MeasureError("duration_s and requests are different ends", where="perf", hint="give one of them")
    windows = int(_several(max_windows, "max_windows", 1)[0])
    window_s = _several(window_ms, "window_ms", 1, whole=False)[0] / 1000
    if windows < MERGED:
        raise MeasureError(f"the last {MERGED} windows are compared", where="max_windows", hint="give at least 3")
    if stability_percentile not in (50, 90, 95, 99):
        raise MeasureError(f"{stability_percentile!r} is none of 50, 90, 95 and 99", where="stability_percentile")
    made = Pace(
        warmup_s=window_s / 2,
        window_s=window_s,
        window_requests=int(_several(window_requests, "window_requests", 1)[0]),
        most_windows=windows,
        most_s=max(Pace.most_s, 2 * windows * window_s),
        tolerance=_several(stability_percent, "stability_percent", 1, whole=False)[0] / 100,
        percentile=float(stability_percentile),
        raw=raw,
    )
    if duration_s is not None:
        return made.for_seconds(_several(duration_s, "duration_s", 1, whole=False)[0])
    return made if requests is None else made.for_requests(int(_several(requests, "requests", 1)[0]))
