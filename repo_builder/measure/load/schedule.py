"""When the requests of an open loop are due."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from repo_builder.core.errors import MeasureError
from repo_builder.core.tensors import Array

MOST_ARRIVALS = 20_000_000
_LONGEST_TRACE_S = 7 * 86400


def constant(rate: float, seconds: float) -> Array:
    """Return offsets in ns, ``(n,)`` int64, of requests at a constant rate.

    Raises:
        MeasureError: They are more than can be kept.
    """
    _check(rate, seconds)
    offsets: Array = (np.arange(int(rate * seconds)) * (1e9 / rate)).astype(np.int64)
    return offsets


def poisson(rate: float, seconds: float, seed: int) -> Array:
    """Return offsets in ns, ``(n,)`` int64, of a Poisson process: exponential gaps of mean ``1 / rate`` s.

    Raises:
        MeasureError: They are more than can be kept.
    """
    _check(rate, seconds)
    generator = np.random.default_rng(seed)
    gaps = generator.exponential(1e9 / rate, size=int(rate * seconds * 1.2) + 100)
    offsets: Array = np.cumsum(gaps).astype(np.int64)
    return offsets[offsets < seconds * 1e9]


def read_trace(path: Path) -> Array:
    """Read arrival times, one a line, in seconds; the first is moved to 0.

    A line may hold more, behind a comma; lines that begin with ``#`` and a first line without a number are skipped.

    Returns:
        Offsets in ns, ``(n,)`` int64, ascending.

    Raises:
        MeasureError: The file cannot be read, holds no times, or they go backwards.
    """
    times: list[float] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MeasureError(f"the trace cannot be read ({error})", where=str(path)) from None
    for number, line in enumerate(lines, 1):
        text = line.partition(",")[0].strip()
        if not text or text.startswith("#"):
            continue
        try:
            times.append(float(text))
        except ValueError:
            if number > 1:
                raise MeasureError(
                    f"'{text}' is no time in seconds", where=f"{path}:{number}", hint="one arrival time a line"
                ) from None
    if not times:
        raise MeasureError("the trace holds no arrival times", where=str(path), hint="one time in seconds a line")
    seconds = np.array(times, dtype=np.float64)
    infinite, backwards = np.flatnonzero(~np.isfinite(seconds)), np.flatnonzero(np.diff(seconds) < 0)
    if len(infinite):
        raise MeasureError(f"the {infinite[0] + 1}. arrival time is {seconds[infinite[0]]}", where=str(path))
    if len(backwards):
        message = f"the {backwards[0] + 2}. arrival time goes backwards"
        raise MeasureError(message, where=str(path), hint="sort the trace")
    if seconds[-1] - seconds[0] > _LONGEST_TRACE_S:
        message = f"the trace lasts {(seconds[-1] - seconds[0]) / 86400:.3g} days"
        raise MeasureError(message, where=str(path), hint="its times are read as seconds")
    offsets: Array = ((seconds - seconds[0]) * 1e9).astype(np.int64)
    return offsets


def _check(rate: float, seconds: float) -> None:
    if rate * seconds > MOST_ARRIVALS:
        raise MeasureError(
            f"{rate:g} requests a second, for as long as it may take ({seconds:.0f} s), are too many",
            where="--request-rate",
            hint="ask for a lower rate, or a shorter --duration",
        )
