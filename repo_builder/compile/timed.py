"""What compiled models are timed with, whatever the target."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from repo_builder.core.samples import Batches
from repo_builder.core.tensors import Array


@dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """Times of one run; of all that were made the least, which other work on the machine disturbs least.

    Attributes:
        layers: Layer → microseconds of its own operators.
        quantizing: Tensor of the fp32 graph → microseconds of the QuantizeLinear that makes its codes.
    """

    layers: dict[str, float] = field(default_factory=dict)
    quantizing: dict[str, float] = field(default_factory=dict)


def feeds(batches: Batches, samples: Mapping[str, Array], *, most: int) -> dict[int, dict[str, Array]]:
    """Return what is timed: number of samples → a model's inputs, of held-out samples; used again where there are few.

    Args:
        batches: How the model takes samples.
        samples: ``(n, *shape)`` by input name.
        most: The largest batch.
    """
    return feeds_of(batches, samples, sizes={1, max(1, most)})


def feeds_of(batches: Batches, samples: Mapping[str, Array], *, sizes: Iterable[int]) -> dict[int, dict[str, Array]]:
    """Return the same for given batch sizes; a network that takes one size alone has that one.

    Args:
        batches: How the model takes samples.
        samples: ``(n, *shape)`` by input name.
        sizes: Batch sizes.
    """
    sizes = [batches.size] if batches.fixed or batches.size == 1 else sorted(set(sizes))
    total = len(next(iter(samples.values())))
    found = {}
    for size in sizes:
        some = {name: value[np.arange(size) % total] for name, value in samples.items()}
        _, found[size] = next(dataclasses.replace(batches, size=size).feeds(some))
    return found
