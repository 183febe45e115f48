"""What every training works on: samples on a device, seeds that an interrupted run can go on from, determinism."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from repo_builder.core.errors import DataError
from repo_builder.core.recipe import Recipe
from repo_builder.core.tensors import Array


class SamplesLike(Protocol):
    """What training needs of samples (``repo_builder.datasets.Samples``)."""

    @property
    def inputs(self) -> dict[str, Array]:
        """Values by input name, batch first."""

    @property
    def labels(self) -> Array | None:
        """Class numbers int64 (n,)."""


class DatasetLike(Protocol):
    """What training needs of a data set (``repo_builder.datasets.Dataset``)."""

    classes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Changes with the samples or their split."""

    @property
    def held_out(self) -> str:
        """Changes with the test samples."""

    def split(self, part: Literal["train", "validation", "test"], /) -> SamplesLike:
        """Return one part's samples."""


@dataclass(frozen=True)
class Part:
    """Samples on the device."""

    inputs: tuple[torch.Tensor, ...]
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


def part_of(samples: SamplesLike, recipe: Recipe, device: str) -> Part:
    """Return samples on a device, inputs in the recipe's order.

    Raises:
        DataError: There are no labels.
    """
    if samples.labels is None:
        raise DataError("training needs labels, and this data has none", where="data.source")
    inputs = tuple(torch.from_numpy(samples.inputs[spec.name]).to(device) for spec in recipe.model.inputs)
    return Part(inputs, torch.from_numpy(samples.labels).to(device))


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of one epoch, so that a run that was interrupted needs no random state to go on."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


@contextmanager
def reproducible(seed: int, device: str) -> Iterator[None]:
    """Make torch deterministic inside the block, and leave its settings and random state as they were."""
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with one of these
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=["cuda"] if device == "cuda" else []):
        torch.use_deterministic_algorithms(True, warn_only=True)  # a user's layer may have no such algorithm
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
