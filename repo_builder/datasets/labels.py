"""From what a user calls labels to class numbers and class names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from repo_builder.core.errors import DataError, did_you_mean
from repo_builder.core.tensors import Array


def class_numbers(
    given: Array | None, names: Sequence[str], *, origin: str, place: Callable[[int], str] = "sample {}".format
) -> tuple[Array | None, tuple[str, ...]]:
    """Return class numbers int64 (n,) and the names of the classes.

    Text becomes the number of its name; whole numbers, also where they are stored as floats, are class numbers. Other
    numbers, and more than one a sample, are targets of something else than classification: they stay as they are and
    there are no classes.

    Args:
        given: Labels as read, or None.
        names: Names of the classes in the order of the numbers; left out, the sorted text or the numbers themselves.
        origin: Where the labels come from.
        place: Number of a sample → where it is.

    Raises:
        DataError: A name that is not one of the classes, or labels of a type that means nothing.
    """
    if given is None:
        return None, tuple(names)
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.dtype.kind == "O" and all(isinstance(item, str) for item in given.flat):
        given = given.astype(str)
    if given.dtype.kind in "US":
        return _named(given.astype(str), names, origin, place)
    if given.dtype.kind not in "iufb" or given.ndim == 0:
        raise DataError(f"the labels are {given.dtype} of shape {list(given.shape)}", where=origin)
    whole = given.ndim == 1 and bool(np.isfinite(given).all()) and bool((given == np.floor(given)).all())
    if not whole:
        return given, ()
    numbers = given.astype(np.int64)
    count = int(numbers.max(initial=-1)) + 1
    return numbers, tuple(names) or tuple(str(number) for number in range(max(1, count)))


def _named(
    given: Array, names: Sequence[str], origin: str, place: Callable[[int], str]
) -> tuple[Array, tuple[str, ...]]:
    known = tuple(names) or tuple(str(item) for item in np.unique(given))
    number_of = {name: number for number, name in enumerate(known)}
    numbers = np.array([number_of.get(item, -1) for item in given.tolist()], np.int64)
    if (numbers < 0).any():
        bad = int(np.argmax(numbers < 0))
        raise DataError(
            f"the label of {place(bad)} is '{given[bad]}', which is no class",
            where=origin,
            hint=did_you_mean(str(given[bad]), known),
        )
    return numbers, known
