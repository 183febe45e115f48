"""When the requests of an open loop are due."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from repo_builder.errors import MeasureError
from repo_builder.tensors import Array


def constant(rate: float, seconds: float) -> Array:
    """Return offsets in ns, ``(n,)`` int64, of requests at a constant rate."""
    offsets: Array = (np.arange(int(rate * seconds)) * (1e9 / rate)).astype(np.int64)
    return offsets


def poisson(rate: float, seconds: float, seed: int) -> Array:
    """Return offsets in ns, ``(n,)`` int64, of a Poisson process: exponential gaps of mean ``1 / rate`` s."""
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
    backwards = np.flatnonzero(np.diff(seconds) < 0)
    if not np.isfinite(seconds).all() or len(backwards):
        place = int(backwards[0]) + 2 if len(backwards) else 1
        raise MeasureError(f"the {place}. arrival time goes backwards", where=str(path), hint="sort the trace")
    offsets: Array = ((seconds - seconds[0]) * 1e9).astype(np.int64)
    return offsets
