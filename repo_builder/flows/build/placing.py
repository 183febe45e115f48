"""The third stage: EngineArtifact → model repository."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from repo_builder.core import artifacts, files, progress, servers
from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.errors import RepositoryError
from repo_builder.core.pipelines import Pipeline
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.flows.build.options import BuildOptions
from repo_builder.repository import config, layout
from repo_builder.repository import pipeline as pipelined


def run(engine: EngineArtifact, options: BuildOptions, pipeline: Pipeline | None = None) -> tuple[Path, bool]:
    """Place the engine, with the pipeline around it; return the model's folder and whether all was there already.

    Raises:
        RepositoryError: The engine does not go with what is there.
        OutputError: The repository cannot be written.
    """
    keep = options.keep_versions or options.recipe.repository.keep_versions
    if keep != engine.recipe.repository.keep_versions:
        repository = dataclasses.replace(engine.recipe.repository, keep_versions=keep)
        engine = dataclasses.replace(engine, recipe=dataclasses.replace(engine.recipe, repository=repository))
    folder = options.repository / engine.recipe.name
    there = (
        pipelined.is_placed(pipeline, engine, options.repository) if pipeline else _is_placed(engine, options, folder)
    )
    if not options.force and there:
        layout.sweep(options.repository)
        progress.skipped("place", f"up to date  {folder}")
        name_servers(folder)
        return folder, True
    with progress.step("place") as step:
        if pipeline is not None:
            placed = pipelined.place(pipeline, engine, options.repository)
        else:
            placed = layout.place(engine, options.repository, version=options.version, keep_versions=keep)
            pipelined.remove_others(options.repository, engine.recipe.name, keep=set())
        step.wrote(placed)
    name_servers(placed)
    return placed, False


def name_servers(folder: Path) -> None:
    """Name the servers that were left running on this repository before the model lay there as it does now."""
    for note in servers.stale(folder.parent, folder.name):
        progress.warn(
            f"the server on {note.endpoints.http_url} serves the '{folder.name}' that lay there before; "
            f"repo-builder serve --restart {folder.parent} replaces it"
        )


def warn_of_another(options: BuildOptions) -> None:
    """Say before any work that the model's name is taken by a model with other tensors, which this one replaces."""
    recipe, folder = options.recipe, options.repository / options.recipe.name
    old = _placed(folder)
    if old is None or options.version != "replace":
        return
    mine = (recipe.model.inputs, recipe.model.outputs)
    if [_names(side) for side in mine] != [_names(old.inputs), _names(old.outputs)]:
        taken = f"{', '.join(map(str, old.inputs))} → {', '.join(map(str, old.outputs))}"
        progress.warn(
            f"the name '{recipe.name}' is taken: {folder} holds another model ({taken}), which this build replaces; "
            "give the recipe a name of its own to keep both"
        )


def _names(tensors: Iterable[TensorSpec]) -> set[tuple[str, DType, int]]:
    return {(item.name, item.dtype, len(item.shape)) for item in tensors}


def _placed(folder: Path) -> EngineArtifact | None:
    """Return the newest version in a model's folder; None where it has none that a build made."""
    try:
        newest = max((int(item.name) for item in folder.iterdir() if item.name.isdecimal()), default=0)
        return artifacts.read(EngineArtifact, folder / str(newest))
    except (OSError, RepositoryError):
        return None


def _is_placed(engine: EngineArtifact, options: BuildOptions, folder: Path) -> bool:
    """Whether the newest version in the repository is this engine under the config that would be written."""
    try:
        text = (folder / "config.pbtxt").read_text(encoding="utf-8")
        newest = max((int(item.name) for item in folder.iterdir() if item.name.isdecimal()), default=0)
        placed = artifacts.read(EngineArtifact, folder / str(newest))
        same = files.sha256_of(placed.path / engine.model.name) == engine.files[engine.model.name]
    except (OSError, RepositoryError):
        return False
    asked = options.version not in (newest, "replace", "next")
    return same and not asked and placed.key == engine.key and text == config.render(config.from_engine(engine))
