"""From a recipe to a model repository."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from repo_builder.api.places import REPOSITORY, WORK, path
from repo_builder.core.errors import DataError
from repo_builder.core.recipe import Recipe
from repo_builder.core.recipe.search import limits
from repo_builder.datasets import given
from repo_builder.flows.build import BuildOptions, BuildResult, compile_artifact, load_exported
from repo_builder.flows.build import build as run

if TYPE_CHECKING:
    from torch import nn

Version = int | Literal["replace", "next"]
Target = Literal["auto", "onnxruntime", "tensorrt"]


def build(
    recipe: Recipe | str | Path,
    *,
    model: nn.Module | None = None,
    data: Any = None,  # noqa: ANN401 - arrays of numpy or torch, or whatever gives batches of them
    output: str | Path = REPOSITORY,
    work: str | Path = WORK,
    target: Target | None = None,
    checkpoint: str | Path | None = None,
    data_dir: str | Path | None = None,
    version: Version = "replace",
    keep_versions: int | None = None,
    allow_precision_mismatch: bool = False,
    accept_departure: bool = False,
    force: bool = False,
    search: bool = False,
    max_drop: float | None = None,
    budget: float | None = None,
    seed: int | None = None,
    timings: str | Path | None = None,
) -> BuildResult:
    """Build a model repository from a recipe, as ``repo-builder build`` does: what is up to date is skipped.

    Args:
        recipe: A recipe, or what ``Recipe.load`` takes.
        model: A network with its weights, instead of the recipe's ``[model] source``; it is copied and left as it is.
        data: Samples instead of the recipe's ``[data] source``, ready for the model: ``(x, y)``, arrays by input name
            with ``y`` for labels, or a loader of such batches in an order that stays. They are kept in
            ``work/NAME/data.npz``, where ``perf`` finds those held out. Text or a path is one as in the recipe.
        output: The model repository to write to.
        work: Folder of the intermediate artifacts.
        target: What to compile for; None takes the recipe's.
        checkpoint: Weights instead of the recipe's.
        data_dir: Folder of the data set instead of a download.
        version: ``replace``, ``next`` or a version's number.
        keep_versions: Versions kept in the repository; None takes the recipe's.
        allow_precision_mismatch: Whether a layer may end in another precision than asked.
        accept_departure: Whether a form that departs from the one before it is placed all the same.
        force: Whether stages that are up to date run again.
        search: Whether precisions are chosen by measuring, as ``[search]`` in the recipe says too.
        max_drop: Most points of accuracy that a search may lose on the validation split.
        budget: Seconds that a search may measure.
        seed: Seed of a search.
        timings: An earlier search's ``measured.json``, whose measurements are taken instead of new ones.

    Raises:
        RepoBuilderError: The branch tells which stage failed; what was there before is untouched.
    """
    found = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    options = BuildOptions(
        recipe=found if data is None else _fed(found, data, Path(work)),
        module=model,
        work=Path(work),
        repository=Path(output),
        target=target,
        checkpoint=path(checkpoint),
        data_dir=path(data_dir),
        force=force,
        version=version,
        keep_versions=keep_versions,
        allow_precision_mismatch=allow_precision_mismatch,
        accept_departure=accept_departure,
        search=limits(found.search, search, max_drop=max_drop, budget_s=budget, seed=seed),
        timings=path(timings),
    )
    return run(options)


def _fed(recipe: Recipe, data: Any, work: Path) -> Recipe:  # noqa: ANN401 - as ``build`` takes it
    """Return a recipe whose samples are those given."""
    if isinstance(data, str | Path):
        return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, source=str(data)))
    if recipe.pipeline.before:
        hint = "name the samples in [data] source, or give a recipe without [pipeline]"
        raise DataError(
            "samples that a program gives are ready for the model, not for a pipeline", where="data", hint=hint
        )
    place = work / recipe.name / "data.npz"
    given.keep(data, place, inputs=[item.name for item in recipe.model.inputs])
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, source=str(place), arguments={}))


def compile(
    artifact: str | Path,
    *,
    output: str | Path = REPOSITORY,
    target: Target | None = None,
    settings: Iterable[str] = (),
    data_dir: str | Path | None = None,
    version: Version = "replace",
    keep_versions: int | None = None,
    allow_precision_mismatch: bool = False,
    accept_departure: bool = False,
    force: bool = False,
    trust_code: bool = False,
) -> BuildResult:
    """Compile an artifact that was exported elsewhere, as ``repo-builder compile`` does.

    Args:
        artifact: The folder ``build/NAME`` of the other machine.
        output: The model repository to write to.
        target: What to compile for; None takes the recipe's.
        settings: ``key.path=value`` items, laid over the artifact's recipe.
        data_dir: Folder of the data set, to score the engine.
        version: As for ``build``.
        keep_versions: As for ``build``.
        allow_precision_mismatch: As for ``build``.
        accept_departure: As for ``build``.
        force: As for ``build``.
        trust_code: Whether the functions that the artifact's manifest names may be run.

    Raises:
        RepoBuilderError: As ``build``.
    """
    exported = load_exported(Path(artifact))
    options = BuildOptions(
        recipe=exported.recipe.changed(settings),
        work=Path(artifact).absolute().parent,
        repository=Path(output),
        target=target,
        data_dir=path(data_dir),
        force=force,
        version=version,
        keep_versions=keep_versions,
        allow_precision_mismatch=allow_precision_mismatch,
        accept_departure=accept_departure,
        trust_code=trust_code,
    )
    return compile_artifact(exported, options)
