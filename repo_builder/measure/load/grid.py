"""Loads as the command line writes them: lists, ranges, shapes, and the grid of all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from repo_builder.core.errors import MeasureError
from repo_builder.results import Level, Mode, SharedMemory

MOST_LEVELS = 500


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Read ``4``, ``1,4,16``, ``2:10:4`` (step 4) or ``1:16:x2`` (times 2); parts may be mixed with commas.

    Args:
        text: As written.
        option: Its option, for messages.

    Raises:
        MeasureError: It is of another form, or a number is not above 0.
    """
    found: list[float] = []
    for part in text.split(","):
        found.extend(_range(part.strip(), text, option))
    return tuple(dict.fromkeys(found))


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """Read as ``numbers`` does, whole numbers only."""
    found = numbers(text, option)
    if any(item != int(item) for item in found):
        raise _unreadable(text, option)
    return tuple(int(item) for item in found)


def shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Read ``ids:128`` or ``image:3,224,224;mask:1,224,224``: shapes, batch left out, by input.

    Raises:
        MeasureError: It is of another form.
    """
    found: dict[str, tuple[int, ...]] = {}
    for part in text.split(";"):
        name, colon, sizes = part.strip().rpartition(":")
        try:
            shape = tuple(int(size) for size in sizes.split(","))
        except ValueError:
            shape = ()
        if not colon or not name or not shape or min(shape) < 1:
            raise MeasureError(f"'{text}' is no shape", where="--shape", hint="as in --shape image:3,224,224")
        found[name] = shape
    return found


def levels(
    *,
    concurrency: Sequence[int],
    rates: Sequence[float],
    poisson: bool,
    trace: str,
    batch_sizes: Sequence[int],
    shape_sets: Sequence[dict[str, tuple[int, ...]]],
    shared_memory: SharedMemory,
    most_in_flight: int,
) -> tuple[Level, ...]:
    """Return the grid of all that was asked for, batch sizes outermost.

    Args:
        concurrency: Requests in flight, for a closed loop.
        rates: Requests a second, for an open loop instead.
        poisson: Whether these arrive at random.
        trace: File of arrival times instead.
        batch_sizes: Samples a request.
        shape_sets: Shapes of inputs with dynamic dimensions; empty for none.
        shared_memory: Where tensors travel.
        most_in_flight: Requests that an open loop may have in flight.

    Raises:
        MeasureError: There are more levels than anybody wants to wait for.
    """
    mode: Mode = "trace" if trace else ("poisson" if poisson else "rate") if rates else "concurrency"
    loads: Sequence[float] = {"trace": (0,), "concurrency": concurrency}.get(mode, rates)
    made = [
        Level(
            mode=mode,
            concurrency=int(load) if mode == "concurrency" else most_in_flight,
            request_rate=load if mode in ("rate", "poisson") else None,
            batch_size=size,
            shapes=given,
            shared_memory=shared_memory,
            trace=trace,
        )
        for size, given, load in itertools.product(batch_sizes, shape_sets or ({},), loads)
    ]
    if len(made) > MOST_LEVELS:
        raise MeasureError(f"that makes {len(made)} levels", hint=f"ask for at most {MOST_LEVELS}")
    return tuple(made)


def _range(part: str, text: str, option: str) -> list[float]:
    pieces = part.split(":")
    factor = len(pieces) == 3 and pieces[2].startswith("x")
    try:
        values = [float(piece.lstrip("x") if place == 2 else piece) for place, piece in enumerate(pieces)]
    except ValueError:
        raise _unreadable(text, option) from None
    if len(values) > 3 or not all(0 < item < math.inf for item in values) or (factor and values[2] <= 1):
        raise _unreadable(text, option)
    if len(values) == 1:
        return values
    found: list[float] = []
    current = values[0]
    while current <= values[1] and len(found) <= MOST_LEVELS:
        found.append(current)
        current = current * values[2] if factor else current + (values[2] if len(values) == 3 else 1)
    if not found:
        raise _unreadable(text, option)
    return found


def _unreadable(text: str, option: str) -> MeasureError:
    return MeasureError(
        f"'{text}' is neither numbers above 0 nor a range", where=option, hint="as in 4, or 1,4,16, or 1:16:x2"
    )
