"""The order of the stages, and nothing else: each is skipped where its inputs' hash has not changed.

    recipe → model + data → quantize + calibrate → export → OnnxArtifact  (build/<name>/onnx)
                                        compile → EngineArtifact          (build/<name>/engine)
                                          place → model repository

Stages never import each other; values are handed on here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from repo_builder import datasets
from repo_builder.core import artifacts, files, loading, progress
from repo_builder.core.artifacts import EngineArtifact, OnnxArtifact
from repo_builder.core.errors import DataError
from repo_builder.datasets import Dataset
from repo_builder.flows.build import compiling, exporting, finetuning, keys, placing, scores
from repo_builder.flows.build.options import BuildOptions, BuildResult

__all__ = ["BuildOptions", "BuildResult", "build", "compile_artifact", "load_exported"]


def build(options: BuildOptions) -> BuildResult:
    """Run every stage that is not up to date.

    Raises:
        RepoBuilderError: The branch tells which stage failed; what was there before is untouched.
    """
    recipe = options.recipe
    for folder in (options.work, options.repository):
        files.require_writable(folder)
    finetuning.check(recipe)
    for key, named in keys.code_names(recipe).items():
        if named.rpartition(":")[2].isidentifier() and not Path(named).exists():  # a file's name may have a colon, too
            loading.require_user(named, where=key)
    target = compiling.choose(options)
    placing.warn_of_another(options)
    with progress.step("load data") as step:
        dataset = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed, data_dir=options.data_dir)
        step.note(f"{dataset.name}: {len(dataset.split('test'))} samples held out")
    exported, known = exporting.run(options, dataset, target.placement(recipe))
    engine, built = compiling.run(exported, target, options, dataset)
    return _placed(exported, engine, options, {"export": known, "compile": built})


def compile_artifact(exported: OnnxArtifact, options: BuildOptions) -> BuildResult:
    """Compile what another machine exported, and place it: the artifact's folder is all that is needed.

    Args:
        exported: What ``load_exported`` returned.
        options: As for ``build``; ``recipe`` is the artifact's own, with settings applied.

    Raises:
        RepoBuilderError: As ``build``.
    """
    named = () if options.trust_code else keys.code_names(exported.recipe).values()
    with loading.distrusting(named, origin=exported.path / artifacts.MANIFEST):
        return _compile(exported, options)


def _compile(exported: OnnxArtifact, options: BuildOptions) -> BuildResult:
    target = compiling.choose(options)
    placing.warn_of_another(options)
    exported = dataclasses.replace(exported, recipe=options.recipe)
    recipe = options.recipe
    dataset: Dataset | None = None
    try:
        dataset = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed, data_dir=options.data_dir)
    except DataError as error:
        progress.skipped(
            "score", f"the held-out data is not here ({error.message}); give --data-dir to score the engine"
        )
    except loading.UntrustedCode as error:
        progress.skipped("score", f"{error.message}; --trust-code does")
    engine, built = compiling.run(exported, target, options, dataset)
    return _placed(exported, engine, options, {"export": True, "compile": built})


def _placed(
    exported: OnnxArtifact, engine: EngineArtifact, options: BuildOptions, up_to_date: dict[str, bool]
) -> BuildResult:
    """Place what was compiled, unless a form of it departs from the one before."""
    departures = scores.hold(engine.accuracy, engine.layers, accept=options.accept_departure)
    folder, there = placing.run(engine, options)
    skipped = tuple(stage for stage, skip in {**up_to_date, "place": there}.items() if skip)
    return BuildResult(exported=exported, engine=engine, model_folder=folder, skipped=skipped, departures=departures)


def load_exported(folder: Path) -> OnnxArtifact:
    """Read ``build/<name>/onnx``, which another machine may have made, and see that it was copied whole.

    Raises:
        RepositoryError: There is none, it is damaged, or its files are not those that its manifest lists.
    """
    exported = artifacts.read(OnnxArtifact, folder / "onnx")
    exported.require_whole()
    return exported
