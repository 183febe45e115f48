"""From what a user calls labels to class numbers and class names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from repo_builder.core.errors import DataError, did_you_mean
from repo_builder.core.tensors import Array

MOST_CLASSES = 100_000  # numbers beyond are no class numbers; large vocabularies of classes have some 20,000


def class_numbers(
    given: Array | None, names: Sequence[str], *, origin: str, place: Callable[[int], str] = "sample {}".format
) -> tuple[Array | None, tuple[str, ...]]:
    """Return class numbers int64 (n,) and the names of the classes.

    Text becomes the number of its name; whole numbers from 0 to 99,999, also where they are stored as floats, are class
    numbers. Other numbers (prices, times, identifiers), and more than one a sample, are targets of something else than
    classification: they stay as they are and there are no classes. With ``names``, whole numbers are class numbers.

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
    low, high = (given.min(initial=0), given.max(initial=0)) if whole else (0, 0)
    most = np.iinfo(np.int64).max // 2 if names else MOST_CLASSES - 1  # a class is a name, a stratum and a line
    if not whole or high > most or low < (-most if names else 0):
        return given, ()
    numbers = given.astype(np.int64)
    return numbers, tuple(names) or tuple(str(number) for number in range(int(high) + 1))


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
