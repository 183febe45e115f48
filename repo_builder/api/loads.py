"""Loads as Python's values, and how long each is measured."""

from __future__ import annotations

from collections.abc import Sequence

from repo_builder.core.errors import MeasureError
from repo_builder.measure.load import grid
from repo_builder.measure.load.course import Pace
from repo_builder.results import Level, SharedMemory


def levels(
    concurrency: int | Sequence[int] | None,
    batch_size: int | Sequence[int] | None,
    request_rate: float | Sequence[float] | None,
    poisson: bool,
    max_p99_ms: float | None,
    shapes: dict[str, tuple[int, ...]] | None,
    shared_memory: SharedMemory,
) -> tuple[Level, ...]:
    """Return the levels asked for; none where all is left to the recipe."""
    loads = {"concurrency": concurrency, "request_rate": request_rate, "max_p99_ms": max_p99_ms}
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
        trace="",
        batch_sizes=tuple(map(int, sizes)),
        shape_sets=[shapes] if shapes else [],
        shared_memory=shared_memory,
        most_in_flight=128,
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


def pace(duration_s: float | None, requests: int | None) -> Pace:
    """Return how long a level is measured."""
    if duration_s is not None and requests is not None:
        raise MeasureError("duration_s and requests are different ends", where="perf", hint="give one of them")
    if duration_s is not None:
        return Pace().for_seconds(_several(duration_s, "duration_s", 1, whole=False)[0])
    return Pace() if requests is None else Pace().for_requests(int(_several(requests, "requests", 1)[0]))
