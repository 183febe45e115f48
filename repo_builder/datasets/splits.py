"""Which sample belongs to which part: disjoint, stratified by class, and the same on every machine for one seed."""

from __future__ import annotations

from typing import Literal

import numpy as np

from repo_builder.core.tensors import Array

Part = Literal["train", "calibration", "validation", "test"]


def partition(
    labels: Array | None,
    count: int,
    *,
    validation: float,
    test: float,
    calibration: int,
    seed: int,
    own_test: int | None = None,
) -> dict[Part, Array]:
    """Return the sample numbers (int64, ascending) of each part; together they are all samples, each once.

    The test part is drawn first, then validation, then calibration; what is left trains. Each draw takes from every
    class its share, exact to less than one sample. Calibration takes at most half of what could train.

    Args:
        labels: Class of each sample (count,), or None for one stratum.
        count: Number of samples.
        validation: Fraction of the samples outside the data set's own test set.
        test: Fraction of all samples; ignored where the data set has its own test set.
        calibration: Number of samples.
        seed: Seed of the draw.
        own_test: Number of the first sample of the data set's own test set, which ends the data; None for none.
    """
    strata = np.zeros(count, np.int64) if labels is None else labels
    # A bit generator's stream is stable across numpy releases; Generator.permutation is not, and a client with another
    # numpy must not be handed training samples as held-out ones.
    keys = np.random.PCG64(seed).random_raw(count)
    rest = np.arange(count if own_test is None else own_test)
    outside = len(rest)
    if own_test is None:
        held_out, rest = _draw(rest, strata, keys, _share(test, outside))
    else:
        held_out = np.arange(own_test, count)
    chooses, rest = _draw(rest, strata, keys, _share(validation, outside))
    calibrates, rest = _draw(rest, strata, keys, min(calibration, len(rest) // 2))
    return {"train": rest, "calibration": calibrates, "validation": chooses, "test": held_out}


def _share(fraction: float, count: int) -> int:
    """At least one sample wherever there is one."""
    return min(count, max(1, round(fraction * count)))


def _draw(pool: Array, strata: Array, keys: Array, size: int) -> tuple[Array, Array]:
    """Split a pool into ``size`` samples, each class in proportion (largest remainder), and the others."""
    if size == 0:
        return pool[:0], pool
    _, stratum, sizes = np.unique(strata[pool], return_inverse=True, return_counts=True)
    quotas = size * sizes // len(pool)
    by_remainder = np.argsort(-(size * sizes % len(pool)), kind="stable")
    quotas[by_remainder[: size - quotas.sum()]] += 1
    order = np.lexsort((keys[pool], stratum))
    rank = np.arange(len(pool)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    drawn = np.zeros(len(pool), bool)
    drawn[order] = rank < np.repeat(quotas, sizes)
    return pool[drawn], pool[~drawn]
