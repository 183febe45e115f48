"""What a build is asked for and what it makes, and the look-up that every stage begins with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from repo_builder.core import artifacts
from repo_builder.core.artifacts import Artifact, EngineArtifact, OnnxArtifact
from repo_builder.core.recipe import Recipe

A = TypeVar("A", bound=Artifact)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What ``repo-builder build`` was asked for.

    Attributes:
        recipe: The recipe, settings applied.
        work: Folder of the artifacts.
        repository: The model repository to write to.
        target: Compile target, ``auto`` or the recipe's where None.
        checkpoint: Weights instead of the recipe's.
        data_dir: Folder of the data set instead of a download.
        force: Whether stages that are up to date run again.
        version: ``replace``, ``next`` or a version's number.
        keep_versions: Versions kept in the repository; None takes the recipe's.
        allow_precision_mismatch: Whether a layer may end in another precision than asked.
    """

    recipe: Recipe
    work: Path
    repository: Path
    target: str | None = None
    checkpoint: Path | None = None
    data_dir: Path | None = None
    force: bool = False
    version: int | Literal["replace", "next"] = "replace"
    keep_versions: int | None = None
    allow_precision_mismatch: bool = False


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What a build made.

    Attributes:
        exported: The ONNX artifact.
        engine: The engine artifact.
        model_folder: The model's folder in the repository.
        skipped: Names of the stages that were up to date.
    """

    exported: OnnxArtifact
    engine: EngineArtifact
    model_folder: Path
    skipped: tuple[str, ...]


def current(cls: type[A], folder: Path, key: str, recipe: Recipe) -> A | None:
    """Return the artifact where it is up to date, with the present recipe in its manifest."""
    found = artifacts.up_to_date(cls, folder, key)
    if found is not None and found.recipe != recipe:
        found = dataclasses.replace(found, recipe=recipe)
        artifacts.write_manifest(found)
    return found
