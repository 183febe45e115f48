"""The best classes and their scores as one number a class again, so that the one scorer scores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from repo_builder.core.tensors import Array


def spread(outputs: Mapping[str, Array], ranked: Sequence[str], classes: int) -> dict[str, Array]:
    """Return outputs with the scores spread over all classes: those that are not among the best get less than any.

    Args:
        outputs: ``(n, ...)`` by name.
        ranked: Names of the classes int64 ``(n, k)``, best first, and of their scores ``(n, k)``; none changes nothing.
        classes: Number of classes.
    """
    found = dict(outputs)
    if ranked:
        places, scores = found[ranked[0]], found[ranked[1]]
        # below the worst of them, also where all are negative: what is not among the best must not tie with the best
        least = np.nextafter(np.minimum(scores.min(axis=1, keepdims=True), 0), -np.inf, dtype=scores.dtype)
        whole = np.repeat(least, classes, axis=1)
        np.put_along_axis(whole, places, scores, axis=1)
        found[ranked[1]] = whole
    return found
