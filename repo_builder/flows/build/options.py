"""What a build is asked for and what it makes, and the look-up that every stage begins with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from repo_builder.core import artifacts, codec, files
from repo_builder.core.artifacts import Artifact, EngineArtifact, OnnxArtifact
from repo_builder.core.pipelines import Pipeline
from repo_builder.core.recipe import Recipe, SearchSpec
from repo_builder.core.records import AccuracyRecord

A = TypeVar("A", bound=Artifact)

CACHE = ".cache"  # in the folder of artifacts: what makes a target's next build shorter


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
        accept_departure: Whether a form that departs from the one before it is placed all the same.
        trust_code: Whether ``compile`` may run the functions that the artifact's manifest names.
        module: A ``torch.nn.Module`` instead of the recipe's source; None takes that.
        search: Limits of a search for precisions, over the recipe's; None where the recipe alone says it.
        timings: A ``measured.json`` whose measurements a search takes instead of new ones.
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
    accept_departure: bool = False
    trust_code: bool = False
    module: Any = None
    search: SearchSpec | None = None
    timings: Path | None = None


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What a build made.

    Attributes:
        exported: The ONNX artifact.
        engine: The engine artifact.
        model_folder: The model's folder in the repository.
        skipped: Names of the stages that were up to date.
        pipeline: The pipeline around it; None where the recipe has none.
        departures: One sentence a form that departs from the one before it, where that was accepted.
        searched: The recipe that a search wrote; None where there was none.
    """

    exported: OnnxArtifact
    engine: EngineArtifact
    model_folder: Path
    skipped: tuple[str, ...]
    departures: tuple[str, ...] = ()
    pipeline: Pipeline | None = None
    searched: Path | None = None

    @property
    def accuracy(self) -> tuple[AccuracyRecord, ...]:
        """One entry a form, from the first to what is placed."""
        return (*self.engine.accuracy, *(self.pipeline.accuracy if self.pipeline else ()))

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values, as ``build --json`` prints them; what is not known is None."""
        engine = self.engine
        return {
            "schema": 1,
            "name": engine.recipe.name,
            "target": engine.target,
            "model_folder": str(self.model_folder),
            "skipped": list(self.skipped),
            "departures": list(self.departures),
            "searched": None if self.searched is None else str(self.searched),
            "layers": [codec.plain(item, nulls=True) | {"precision": item.precision} for item in engine.layers],
            "accuracy": [codec.plain(item, nulls=True) for item in self.accuracy],
            "repairs": [codec.plain(item, nulls=True) for item in self.exported.details.repairs],
            "exporter": self.exported.details.exporter,
            "pipeline": _told(self.pipeline) if self.pipeline else None,
            "details": codec.plain(engine.details, nulls=True),
            "finetuned": codec.plain(self.exported.details.finetuned, nulls=True),
        }


def _told(pipeline: Pipeline) -> dict[str, Any]:
    """Return a pipeline as JSON values."""
    return {
        "fused": pipeline.fused,
        "apart": pipeline.apart,
        "inputs": [codec.plain(item) for item in pipeline.inputs],
        "outputs": [codec.plain(item) for item in pipeline.outputs],
        "parts": [{"kind": item.kind, "runs": list(item.runs)} for item in pipeline.parts],
    }


def current(
    cls: type[A], folder: Path, key: str, recipe: Recipe, rescored: Callable[[A], tuple[AccuracyRecord, ...]]
) -> A | None:
    """Return the artifact where it is up to date, with the present recipe in its manifest.

    Args:
        cls: Its kind.
        folder: Where it is.
        key: What it has to be of.
        recipe: The present recipe; another ``[measure]`` changes nothing that was made, only how it is scored.
        rescored: The artifact → its scores under the present recipe.
    """
    files.sweep(folder)
    found = artifacts.up_to_date(cls, folder, key)
    if found is not None and found.recipe != recipe:
        accuracy = found.accuracy if found.recipe.measure == recipe.measure else rescored(found)
        found = dataclasses.replace(found, recipe=recipe, accuracy=accuracy)
        artifacts.write_manifest(found)
    return found
