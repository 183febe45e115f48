"""The chosen configuration, written where it takes effect; what stood there before is kept."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from repo_builder.core import files
from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe import Recipe, reading
from repo_builder.flows.tune.options import TuneOptions
from repo_builder.recipes import editing
from repo_builder.repository import layout, serving
from repo_builder.results.tuning import Settings

_NOTE = "Serving settings chosen by repo-builder tune; a build writes them anew from its recipe."


def recipe_values(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return a configuration as a recipe has it: table → key → value."""
    values: dict[str, dict[str, Any]] = {
        "repository": {
            "instance_count": settings.instances,
            "max_batch_size": settings.max_batch_size,
            "max_queue_delay_us": settings.max_queue_delay_us,
            "preferred_batch_sizes": list(settings.preferred_batch_sizes),
        }
    }
    if settings.threads is not None:
        values["compile.onnxruntime"] = {"intra_op_thread_count": settings.threads}
    return values


def target_file(options: TuneOptions) -> Path:
    """Return the recipe file to write: the user's own, or a new one for a built-in's.

    Raises:
        RecipeError: No recipe is known, or the new file's place is taken.
    """
    if options.recipe_file is not None:
        return options.recipe_file
    if options.recipe not in reading.built_in():
        hint = "name its recipe with --recipe, or use --apply config"
        raise RecipeError(f"no recipe of the model '{options.model}' is known to write into", hint=hint)
    path = Path(f"{options.recipe}.toml")
    if path.exists():
        hint = f"use that one with --recipe {path}, or move it away"
        raise RecipeError(
            "a new recipe would be written there, and something is in the way", where=str(path), hint=hint
        )
    return path


def to_recipe(options: TuneOptions, settings: Settings) -> list[str]:
    """Write a configuration into the recipe's file; return the paths written, the kept old one last.

    Raises:
        RecipeError: The file cannot be edited, or what came of it is no recipe.
        OutputError: It cannot be written.
    """
    path = target_file(options)
    source = path if path.exists() else reading.find(str(options.recipe))
    before = source.read_text(encoding="utf-8")
    values = recipe_values(settings)
    allowed = settings.max_batch_size or 1
    warmup = Recipe.load(source).repository.warmup_batch_sizes or ()
    fitting = [item for item in warmup if item <= max(1, allowed)]
    if len(fitting) < len(warmup):
        values["repository"]["warmup_batch_sizes"] = fitting or [1]
    text = editing.with_values(before, values, where=str(path))
    kept = _keep(options, path.name, before) if path.exists() else None
    files.write_text(path, text)
    Recipe.load(path)
    return [str(path), *([str(kept)] if kept else [])]


def to_config(options: TuneOptions, settings: Settings) -> list[str]:
    """Write a configuration into the placed config.pbtxt of the build that it is of; return the paths written.

    Raises:
        RepositoryError: Triton would not load what came of it; the old one stays.
        OutputError: It cannot be written.
    """
    folder = (options.repository / options.model, *options.builds)[settings.build]
    path = folder / "config.pbtxt"
    before = path.read_text(encoding="utf-8")
    config = serving.changed(serving.of_text(before, str(path)), settings)
    kept = _keep(options, "config.pbtxt", before)
    layout.reconfigure(folder, serving.rendered(config, before, _NOTE))
    return [str(path), str(kept)]


def _keep(options: TuneOptions, name: str, text: str) -> Path:
    """Keep a file's text beside the trials, under the time, and return where."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    path = options.folder / "before" / f"{stamp}-{name}"
    files.write_text(path, text)
    return path
